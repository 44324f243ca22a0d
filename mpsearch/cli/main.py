"""The command line. Results go to stdout, all else to stderr; exit codes: 0 done, 1 internal fault, 2 bad input."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Annotated

import typer

from hwmodel import InputError
from mpsearch.cli import commands, hardware, inspect
from mpsearch.cli.ascii import write_anywhere
from mpsearch.cli.common import results_apart

INTERRUPTED = 130
STEPS = "Step by step"
LOOK = "Looking at runs"
HARDWARE = "Layers and devices"


def application() -> typer.Typer:
    """All commands, in the order of the help page."""
    app = typer.Typer(
        name="mpsearch",
        help="Finds the bit-width of every layer of a trained network and finishes it by block reconstruction.",
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback(invoke_without_command=True)(root)
    for command in (commands.run, commands.reconstruct):
        app.command()(results_apart(command))
    for step in (commands.sensitivity, commands.search, commands.finalize):
        app.command(rich_help_panel=STEPS)(results_apart(step))
    for look in (inspect.front, inspect.compare, inspect.why, inspect.export):
        app.command(rich_help_panel=LOOK)(results_apart(look))
    for tell in (hardware.layers, hardware.devices, hardware.profile):
        app.command(rich_help_panel=HARDWARE)(results_apart(tell))
    app.command("import-haq", rich_help_panel=HARDWARE)(results_apart(hardware.import_haq))
    app.command("demo-data", rich_help_panel=LOOK)(results_apart(inspect.demo_data))
    return app


def root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Options of every command."""
    if show_version:
        typer.echo(f"mpsearch {version('mpsearch')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The entry point: turns errors into one line and an exit code."""
    write_anywhere()
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    with _errors(debug):
        code = application()(arguments, standalone_mode=False)
        if code == INTERRUPTED:  # typer makes this of a KeyboardInterrupt
            raise KeyboardInterrupt
        sys.exit(code)


@contextlib.contextmanager
def _errors(debug: bool) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        if debug:
            raise
        print(f"mpsearch: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("mpsearch: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "format_message"):  # a wrong command line; where typer keeps the class depends on its version
            print(f"mpsearch: {error.format_message()} (mpsearch --help lists what there is)", file=sys.stderr)
            sys.exit(2)
        print(f"mpsearch: internal fault: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        sys.exit(1)
