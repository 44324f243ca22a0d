"""Files that are replaced whole: whoever reads one sees what was there before or what is there now, never a part."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from hwmodel.errors import InputError

TEMPORARY = re.compile(r"\.mpsearch-(?P<host>[0-9a-f]+)-(?P<pid>[0-9]+)-[0-9a-f]+\.tmp")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def this_host() -> str:
    """This machine's name, in letters that file names may have."""
    return socket.gethostname().encode()[:24].hex()


def write_whole(path: Path, *parts: bytes) -> None:
    """Replaces a file by `parts`, one after another, in one step that outlasts a crash of the machine.

    They are written under a name of their own, which `TEMPORARY` matches, and flushed to the disk, then the file takes
    its name. Raises InputError where that fails; what was at `path` is as it was.
    """
    temporary = path.with_name(f".mpsearch-{this_host()}-{os.getpid()}-{secrets.token_hex(6)}.tmp")
    with failures(path), removed_on_failure(temporary):
        with temporary.open("xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)


@contextlib.contextmanager
def failures(path: Path) -> Iterator[None]:
    """Turns what the system says of writing `path` into an InputError with what to do."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error}); {_advice(error)}") from None


@contextlib.contextmanager
def removed_on_failure(temporary: Path) -> Iterator[None]:
    """Removes a file where what is inside does not get to its end."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _advice(error: OSError) -> str:
    if error.errno in _NO_ROOM:
        return "nothing is lost: make room there, and the same command goes on from here"
    if error.errno == errno.ENOENT:
        return "its folder is not there: make it, or name another place with --out"
    return "nothing is lost: make it writable, or name another place with --out"


def _flush_folder(folder: Path) -> None:
    """Makes the disk keep the names in a folder, where the system can open one."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that keep no folders to flush
            raise
    finally:
        os.close(handle)


def leftovers(folder: Path) -> Iterable[tuple[Path, str, int]]:
    """Files in a folder that a crash left half written, each with the host and the process id that wrote it."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.scandir(folder):
            found = TEMPORARY.fullmatch(entry.name)
            if found is not None:
                yield Path(entry.path), found["host"], int(found["pid"])
