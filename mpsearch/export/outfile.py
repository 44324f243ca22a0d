"""Where an exported file may go: never over another one unasked."""

from __future__ import annotations

import os
from pathlib import Path

from hwmodel.errors import InputError


def require_free(path: Path, force: bool, folder: bool = False) -> None:
    """Refuses what is there unless `force`, a folder where a file is to be and the other way round, and a place that is
    not there or cannot be written to."""
    if folder and path.exists() and not path.is_dir():
        raise InputError(f"--out must name a folder, but {path} is a file; name another")
    if path.is_dir() and not folder:
        raise InputError(f"--out must name a file, but {path} is a folder; name a file in it")
    if path.exists() and not force and not (folder and not any(path.iterdir())):
        raise InputError(f"{path} is there already; name another file with --out, or replace it with --force")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder; make it first, or name another file with --out")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write to {path.parent} (no permission); name another file with --out")
