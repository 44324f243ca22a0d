"""How the fields of an options record are given on the command line: one place for name, help, reader and default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

# The panels of a command's help.
BUDGETS = "Budgets"
MODEL = "Model and data"
DETECTION = "Detection"
SEARCH = "Search"
RECONSTRUCTION = "Reconstruction"
PLACE = "Where it runs"
PANELS = (BUDGETS, MODEL, DETECTION, SEARCH, RECONSTRUCTION, PLACE)


@dataclass(frozen=True, slots=True)
class Flag:
    """What the command line says about a field of an options record, as `Annotated[type, Flag(…)]`.

    `panel` is the part of `--help` that the option stands in. `read` makes the field's value of the text that was
    given, and `shown` is the text of the default; without `read`, the value is what the field's type makes of it.
    `name` is the option, where it is not the field's name. `metavar` says what kind of text is expected.
    """

    panel: str
    help: str
    read: Callable[[str], Any] | None = None
    shown: str | None = None
    name: str | None = None
    metavar: str | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """A field with its flag: its name, its type without annotations, its default."""

    name: str
    type: Any
    default: Any
    flag: Flag


def flags_of(record: type[Any]) -> list[Given]:
    """The fields of an options record that have a flag, in the order of the record."""
    plain, rich = get_type_hints(record), get_type_hints(record, include_extras=True)
    found = []
    for field in fields(record):
        flag = next((part for part in getattr(rich[field.name], "__metadata__", ()) if isinstance(part, Flag)), None)
        if flag is not None:
            found.append(Given(field.name, plain[field.name], field.default, flag))
    return found
