"""Files that options name, as a run folder keeps them: seen from the folder, so that both may move."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

NAMING = ("model", "weights", "data", "annotations", "decode", "task", "device")  # options that may name a file
HOME = "folder"  # the key under which a folder says where it was

Place = TypeVar("Place")


def seen_from(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The `values` of options with files that are there named relative to `folder`, and where that lies."""
    found = {name: _with_path(value, folder, _relative) for name, value in values.items() if name in NAMING}
    moved = {name: value for name, value in found.items() if value != values[name]}
    return {**values, **moved, **({HOME: str(folder.resolve())} if moved else {})}


def found_again(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse, for a folder that may have moved, with the files or without them.

    A file is looked for relative to the folder, then to where the folder was. One that is at neither place, and a name,
    stay as they are.
    """
    values = dict(values)
    was = values.pop(HOME, None)
    bases = (folder.resolve(), *([Path(was)] if isinstance(was, str) else []))
    for name in NAMING:
        if name in values:
            values[name] = _with_path(values[name], bases, _found)
    return values


def _with_path(text: object, places: Place, change: Callable[[str, Place], str]) -> object:
    """The text with the path in it, of a file or of `FILE.py:name`, changed."""
    if not isinstance(text, str):
        return text
    source, colon, name = text.rpartition(":")
    if source.endswith(".py"):
        return f"{change(source, places)}{colon}{name}"
    return change(text, places)


def _relative(text: str, folder: Path) -> str:
    path = Path(text).expanduser()
    if not text or not path.exists():
        return text
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return str(path.resolve())


def _found(text: str, bases: Sequence[Path]) -> str:
    """The path as one would type it here: relative where it lies below, else absolute; as it is where it is nowhere."""
    here = Path.cwd().resolve()
    for base in () if not text or Path(text).is_absolute() else bases:
        path = Path(os.path.normpath(base / text))  # the folder that `..` leaves need not be there any more
        if path.exists():
            return str(path.relative_to(here) if path.is_relative_to(here) else path)
    return text
