"""Options of commands: `takes` makes them of a record's fields, so that a command gets one record."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer

from mpsearch.request.compute import ComputeOptions
from mpsearch.request.flags import PANELS, PLACE, Given, flags_of

Out = Annotated[Path | None, typer.Option(help="The run folder (default: runs/MODEL).", rich_help_panel=PLACE)]
_WAIT = "Wait while another process is at work there, instead of ending."
Wait = Annotated[bool, typer.Option("--wait", help=_WAIT, rich_help_panel=PLACE)]
Json = Annotated[bool, typer.Option("--json", help="Only JSON to stdout.")]
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def takes(*records: type[ComputeOptions]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command, in place of its first parameters, an option for every field of the `records` that has a flag;
    fields of the same name are one option."""
    fields = {record: [field.name for field in flags_of(record)] for record in records}
    flags = {field.name: field for record in reversed(records) for field in flags_of(record)}
    given = sorted(flags.values(), key=lambda field: PANELS.index(field.flag.panel))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(records) :]

        @wraps(command)
        def call(**values: Any) -> None:
            texts = {field.name: values.pop(field.name) for field in given}
            read = {field.name: _value(field, texts[field.name]) for field in given if texts[field.name] is not None}
            made = [
                record.from_flags({name: read[name] for name in fields[record] if name in read}) for record in records
            ]
            command(*made, **values)

        parameters = [_parameter(field) for field in given]
        needed = [one for one in own if one.default is inspect.Parameter.empty]
        others = [one for one in own if one.default is not inspect.Parameter.empty]
        everything = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*needed, *parameters, *others)]
        call.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
        call.__annotations__ = {one.name: one.annotation for one in everything}
        return call

    return decorate


def _value(field: Given, given: Any) -> Any:
    if field.flag.read is not None:
        return field.flag.read(given)
    return tuple(given) if isinstance(given, list) else given


def _parameter(field: Given) -> inspect.Parameter:
    """The field as a parameter that typer reads: text where the flag reads it, else of the field's own type."""
    flag = field.flag
    kind, default = field.type, field.default
    if flag.read is not None:
        kind, default = (str, flag.shown) if flag.shown is not None else (str | None, None)
    elif get_origin(kind) is tuple:
        kind, default = list[str] | None, None
    name = flag.name or f"--{field.name.replace('_', '-')}"
    option = typer.Option(name, help=flag.help, metavar=flag.metavar, rich_help_panel=flag.panel)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )
