"""The command line. Results go to stdout, all else to stderr; exit codes: 0 done, 1 internal fault, 2 bad input."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Annotated

import typer

from hwmodel.errors import InputError, no_memory
from mpsearch.cli import commands, deploy, hardware, inspect
from mpsearch.cli.common import results_apart
from mpsearch.cli.examples import epilog
from mpsearch.cli.interrupts import Stop, interruptible
from mpsearch.cli.limits import require_address_space
from mpsearch.cli.streams import ready_streams

INTERRUPTED = 130
CLOSED = 128 + 13  # stdout, as a shell says it of a program that SIGPIPE ends
STEPS = "Step by step"
LOOK = "Looking at runs"
HARDWARE = "Layers and devices"


def application() -> typer.Typer:
    """All commands, in the order of the help page."""
    app = typer.Typer(
        name="mpsearch",
        help="Finds the bit-width of every layer of a trained network and finishes it by block reconstruction.",
        epilog="mpsearch COMMAND --help ends with examples; mpsearch --install-completion sets up the shell.",
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(root)

    def add(command: Callable[..., None], panel: str | None = None) -> None:
        name = command.__name__.replace("_", "-")
        app.command(name, epilog=epilog(name), rich_help_panel=panel)(results_apart(command))

    for command in (commands.run, commands.reconstruct):
        add(command)
    for step in (commands.sensitivity, commands.search, commands.finalize):
        add(step, STEPS)
    for look in (inspect.front, inspect.explore, inspect.compare, inspect.why, inspect.export, deploy.check):
        add(look, LOOK)
    for tell in (hardware.layers, hardware.devices, deploy.targets, hardware.profile, hardware.import_haq):
        add(tell, HARDWARE)
    add(inspect.demo_data, LOOK)
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
    ready_streams()
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    with interruptible() as stop, _errors(debug, stop):
        if arguments and not {"--help", "--version"} & set(arguments):
            require_address_space()
        code = application()(arguments, standalone_mode=False)
        if code == INTERRUPTED:  # typer makes this of a KeyboardInterrupt
            raise KeyboardInterrupt
        sys.exit(code)


@contextlib.contextmanager
def _errors(debug: bool, stop: Stop) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        stop.say()
        sys.exit(stop.code)
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # what is left to write goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED)
    except Exception as error:
        if debug:
            raise
        line, code = _said(error)
        with contextlib.suppress(OSError, AttributeError):  # stderr may be closed
            print(f"mpsearch: {line}", file=sys.stderr)
        sys.exit(code)


def _said(error: Exception) -> tuple[str, int]:
    """What to say of an error in one line, and the exit code."""
    text = _one_line(str(error))
    if no_memory(error):
        return (
            f"out of memory ({text[:200] or 'an allocation failed'}): nothing is lost, the same command goes on from "
            "here; to need less, lower --samples, --val-samples, --cache-memory or --workers"
        ), 2
    if isinstance(error, InputError):
        return text, 2
    if hasattr(error, "format_message"):  # a wrong command line; where typer keeps the class depends on its version
        return f"{_one_line(error.format_message())} (mpsearch --help lists what there is)", 2
    if isinstance(error, OSError):
        where = _one_line(str(error.filename or "a file or stdout"))
        return f"the system refuses {where} ({error.strerror or text}); nothing is lost, the same command goes on", 2
    return f"internal fault: {type(error).__name__}: {text} (--debug shows where)", 1


def _one_line(text: str) -> str:
    """A text as a terminal may have it: names of files may hold line breaks, and colours, and marks that turn lines."""
    characters = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in text.strip())
    return "".join(characters)
