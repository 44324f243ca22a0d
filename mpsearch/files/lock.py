"""Who works in a folder: one writer at a time, known by process and machine, who first clears up after a crash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from hwmodel import InputError
from hwmodel.files import failures, leftovers, this_host

LOCK = ".lock"
MOST_BYTES = 4096  # of what a lock says
POLL_SECONDS = 0.2


@contextlib.contextmanager
def held(path: Path, what: str, wait: bool, note: Callable[[str], None], folders: tuple[Path, ...]) -> Iterator[None]:
    """Holds the lock file `path`, which stands for `what`, and removes what crashed writers left in `folders`.

    Readers take no lock. Raises InputError with the holder's process id and machine where somebody else has the lock,
    or, where this is to `wait`, notes them and waits.
    """
    lock = FileLock(path, poll_interval=POLL_SECONDS)
    with failures(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = _holder(path)
            if not wait:
                raise InputError(
                    f"{what} is in use by {holder}: wait for it, add --wait to go on when it is done, "
                    "or name another place with --out"
                ) from None
            note(f"{what} is in use by {holder}: waiting for it")
            lock.acquire()
    try:
        with failures(path):
            path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}))
        for folder in folders:
            for file, *_ in leftovers(folder):
                file.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # while it is held: who waits looks whether the file is still there
            path.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def held_file(path: Path, wait: bool, note: Callable[[str], None]) -> Iterator[None]:
    """The same for a single file, in a folder that others may work in: what crashed writers of this machine left there
    is removed."""
    for file, host, pid in leftovers(path.parent):
        if host == this_host() and not psutil.pid_exists(pid):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
    name = hashlib.blake2b(path.name.encode(), digest_size=8).hexdigest()  # names may be as long as names may be
    with held(path.with_name(f"{LOCK}-{name}"), str(path), wait, note, ()):
        yield


def _holder(path: Path) -> str:
    """What a lock file says of its holder; where it can be read, and says something."""
    try:
        about = json.loads(path.read_bytes()[:MOST_BYTES])
        return f"process {int(about['pid'])} on {str(about['host'])[:64]!r}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
