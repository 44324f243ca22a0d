"""Who works in a folder: one writer at a time, known by process and machine, who first clears up after a crash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from hwmodel import InputError
from hwmodel.files import leftovers, this_host
from hwmodel.json_text import parse_json

LOCK = ".lock"
MOST_BYTES = 4096  # of what a lock says
POLL_SECONDS = 0.2


@contextlib.contextmanager
def held(
    path: Path, what: str, wait: bool, note: Callable[[str], None], subfolders: tuple[str, ...] | None = None
) -> Iterator[None]:
    """Holds the lock file `path`, which stands for `what`.

    With `subfolders` the lock is that of its whole folder, which is made with these, and cleared of what crashed
    writers left; of what was made for it, folders that stay empty go again. Readers take no lock. Raises InputError
    with the holder's process id and machine where somebody else has the lock, or, where this is to `wait`, notes them
    and waits; and where nothing can be written there.
    """
    folder, lock = path.parent, FileLock(path, poll_interval=POLL_SECONDS)
    made = [] if subfolders is None else [one for one in (*reversed(folder.parents), folder) if not one.exists()]
    noted = False
    with _refused(what):
        while not lock.is_locked:
            if subfolders is not None:
                folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=POLL_SECONDS if noted else 0)
            except Timeout:
                holder = _holder(path)
                if not wait:
                    raise InputError(
                        f"{what} is in use by {holder}: wait for it, add --wait to go on when it is done, or name "
                        "another place with --out"
                    ) from None
                if not noted:
                    note(f"{what} is in use by {holder}: waiting for it")
                noted = True
            except FileNotFoundError:  # whoever had the lock has removed the folder, which was still empty
                if subfolders is None or not noted:
                    raise
    try:
        with _refused(what):
            path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}))
            for one in [folder / name for name in subfolders or ()]:
                made += [] if one.exists() else [one]
                one.mkdir(exist_ok=True)
            for one in () if subfolders is None else (folder, *(folder / name for name in subfolders)):
                for file, *_ in leftovers(one):
                    file.unlink(missing_ok=True)
        yield
    finally:
        _removed_if_empty(one for one in made if one.parent == folder)
        with contextlib.suppress(OSError):  # while it is held: who waits looks whether the file is still there
            path.unlink(missing_ok=True)
        _removed_if_empty(one for one in reversed(made) if one.parent != folder)
        lock.release()


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to {what} ({error.strerror}); name another place with --out") from None


def _removed_if_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def held_file(path: Path, wait: bool, note: Callable[[str], None]) -> Iterator[None]:
    """The same for a single file, in a folder that others may work in, which is swept."""
    sweep(path.parent)
    name = hashlib.blake2b(path.name.encode(), digest_size=8).hexdigest()  # names may be as long as names may be
    with held(path.with_name(f"{LOCK}-{name}"), str(path), wait, note):
        yield


def sweep(folder: Path) -> None:
    """Removes what writers of this machine that are gone left in a folder that others may work in."""
    for file, host, pid in leftovers(folder):
        if host == this_host() and not psutil.pid_exists(pid):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


def _holder(path: Path) -> str:
    """What a lock file says of its holder; where it can be read, and says something."""
    try:
        about = parse_json(path.read_bytes()[:MOST_BYTES])
        return f"process {int(about['pid'])} on {str(about['host'])[:64]!r}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
