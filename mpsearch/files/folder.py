"""The run folder: one file a step, each with the key of what it was made from."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hwmodel import InputError
from hwmodel.files import write_whole
from hwmodel.json_text import parse_json
from mpsearch.files.lock import LOCK, held
from mpsearch.files.reading import reading

Json = dict[str, Any]
AGAIN = "delete it to make it again"


class RunFolder:
    """Paths and whole-file reads and writes below one folder; raises InputError where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def held(
        self, wait: bool = False, note: Callable[[str], None] = print, subfolders: tuple[str, ...] = ("chosen",)
    ) -> Iterator[None]:
        """Makes the folder and its subfolders and keeps other writers out; folders that stay empty go again.

        Raises InputError where they cannot be written to, or where another process is at work in them, unless this is
        to `wait`, which is noted.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out must name a folder, but {self.path} is a file; name another")
        with held(self.path / LOCK, str(self.path), wait, note, subfolders):
            yield

    def file(self, name: str) -> Path:
        """The path of one of the folder's files."""
        return self.path / name

    def write(self, name: str, text: str) -> None:
        """Replaces a text file in one step."""
        write_whole(self.file(name), text.encode())

    def write_json(self, name: str, data: Json) -> None:
        """Replaces a JSON file in one step."""
        self.write(name, json.dumps(data, indent=1) + "\n")

    def read_json(self, name: str) -> Json:
        """A JSON file's object. Raises InputError where it is missing or damaged."""
        path = self.file(name)
        if not path.is_file():
            raise InputError(f"{path} is missing: run the step that makes it, or `mpsearch run` for all")
        with reading(path, AGAIN):
            data = parse_json(path.read_bytes(), not_finite=True)  # measured figures may be anything
            if not isinstance(data, dict):
                raise ValueError("expected an object")
        return data

    def current(self, name: str, key: str) -> Json | None:
        """The JSON file if it was made from `key`, else None."""
        if not self.file(name).is_file():
            return None
        data = self.read_json(name)
        return data if data.get("key") == key else None
