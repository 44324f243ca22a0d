"""The run folder: one file a step, each with the key of what it was made from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hwmodel import InputError

Json = dict[str, Any]


class RunFolder:
    """Paths and whole-file reads and writes below one folder; raises InputError where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self, subfolders: tuple[str, ...] = ("chosen",)) -> None:
        """Makes the folder and its subfolders, or says why they cannot be written to."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out must name a folder, but {self.path} is a file; name another")
        try:
            for name in (".", *subfolders):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"cannot write to {self.path} ({error.strerror}); name another folder with --out"
            ) from None

    def file(self, name: str) -> Path:
        """The path of one of the folder's files."""
        return self.path / name

    def write(self, name: str, text: str) -> None:
        """Replaces a text file in one step."""
        target = self.file(name)
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)

    def write_json(self, name: str, data: Json) -> None:
        """Replaces a JSON file in one step."""
        self.write(name, json.dumps(data, indent=1) + "\n")

    def read_json(self, name: str) -> Json:
        """A JSON file's object. Raises InputError where it is missing or damaged."""
        path = self.file(name)
        if not path.is_file():
            raise InputError(f"{path} is missing: run the step that makes it, or `mpsearch run` for all")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is damaged ({error}); delete it to make it again") from None
        if not isinstance(data, dict):
            raise InputError(f"{path} is damaged (expected an object); delete it to make it again")
        return data

    def current(self, name: str, key: str) -> Json | None:
        """The JSON file if it was made from `key`, else None."""
        if not self.file(name).is_file():
            return None
        data = self.read_json(name)
        return data if data.get("key") == key else None
