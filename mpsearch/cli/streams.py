"""The three standard streams, whatever the caller left of them."""

from __future__ import annotations

import io
import os
import sys

from mpsearch.cli import ascii as _ascii  # noqa: F401  registers the error handler


def ready_streams() -> None:
    """Opens to nowhere what is closed, and writes plain characters for those that an encoding does not have.

    A closed stream's number would be given to the next file that is opened, and warnings would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plainly")
