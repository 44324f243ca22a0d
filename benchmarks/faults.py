"""Faults at the n-th thing that a process does to the disk: a kill, or what a full, broken or slow disk says.

    faults = Faults(at=7, act=killed)      # or refused(errno.ENOSPC), slow(0.01)
    with faults: ...

What is counted: opening a file to write, writing the lock, flushing, replacing, removing, making a folder.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import time
from collections.abc import Callable
from typing import Any

COUNTED = ("replace", "fsync", "unlink", "mkdir", "rmdir")


def killed(name: str) -> None:
    """The process ends here, as by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


def refused(number: int) -> Callable[[str], None]:
    """The system answers with an error."""

    def act(name: str) -> None:
        if name not in ("unlink", "rmdir") or number not in (errno.ENOSPC, errno.EDQUOT):  # full disks let files go
            raise OSError(number, os.strerror(number))

    return act


def slow(seconds: float) -> Callable[[str], None]:
    """The disk takes its time."""
    return lambda name: time.sleep(seconds)


class Faults:
    """Counts what is done to files from when it is entered, and acts at the `at`-th, or, with `lasting`, from then on.

    `at` 0 only counts.
    """

    def __init__(self, at: int, act: Callable[[str], None] = killed, *, lasting: bool = False) -> None:
        self.at, self.act, self.lasting = at, act, lasting
        self.count = 0
        self.names: list[str] = []
        self._before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Faults:
        for name in COUNTED:
            self._put(os, name, self._counting(name, getattr(os, name)))
        for module in (builtins, io):
            self._put(module, "open", self._opening(module.open))
        return self

    def __exit__(self, *_: object) -> None:
        for module, name, was in reversed(self._before):
            setattr(module, name, was)

    def _put(self, module: Any, name: str, function: Any) -> None:
        self._before.append((module, name, getattr(module, name)))
        setattr(module, name, function)

    def _counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._one(name)
            return function(*args, **kwargs)

        return call

    def _opening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set("wxa+") & set(mode) and isinstance(file, str | os.PathLike) and not str(file).startswith("/dev/"):
                self._one("open")
            return function(file, mode, *args, **kwargs)

        return call

    def _one(self, name: str) -> None:
        self.count += 1
        self.names.append(name)
        if self.at and (self.count == self.at or (self.lasting and self.count > self.at)):
            self.act(name)
