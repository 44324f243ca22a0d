"""Writing an exported file: never over another one unasked, and nothing half-written stays."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hwmodel.errors import InputError


def require_free(path: Path, force: bool) -> None:
    """Refuses a folder, a file that is there unless `force`, and a folder that is not there or cannot be written to."""
    if path.is_dir():
        raise InputError(f"--out must name a file, but {path} is a folder; name a file in it")
    if path.exists() and not force:
        raise InputError(f"{path} is there already; name another file with --out, or replace it with --force")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder; make it first, or name another file with --out")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write to {path.parent} (no permission); name another file with --out")


def write_file(path: Path, data: bytes) -> int:
    """Replaces a file in one step; the number of bytes. Raises InputError where the system does not let it."""
    with _whole(path) as temporary:
        temporary.write_bytes(data)
    return path.stat().st_size


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); name another file with --out") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
