"""Being stopped: once is an orderly end within seconds, twice is an end at once; SIGTERM and a closed terminal as well.

Python sees a signal only when the operation under way is over, and a step on a large tensor may take long. A thread
sees it at once, since the system's own handler writes into a pipe, and ends the process where the rest of it does not
end in time. Nothing is lost by that: files are replaced whole, and what is half written is removed at the next start.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

GRACE_SECONDS = 1.2
LINE = "mpsearch: interrupted; the same command goes on from here"
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


@dataclass
class Stop:
    """Which signal has come, 0 for none, and whether the line that says so is written."""

    number: int = 0
    said: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.number:  # the thread sees to any other
            self.number = number
            raise KeyboardInterrupt

    @property
    def code(self) -> int:
        """The exit code that shells know: 128 and the signal's number."""
        return 128 + (self.number or signal.SIGINT)

    def say(self) -> None:
        """Says once on stderr that the command was stopped and how it goes on."""
        if not self.said:
            self.said = True
            with contextlib.suppress(OSError, AttributeError):
                cursor = "\x1b[?25h" if sys.__stderr__.isatty() else ""  # type: ignore[union-attr]
                os.write(2, f"{cursor}{LINE}\n".encode())


@contextlib.contextmanager
def interruptible() -> Iterator[Stop]:
    """Signals raise KeyboardInterrupt inside; where that does not end the process in time, it ends all the same.

    What is ignored, as `nohup` asks for, stays ignored. In a thread that is not the main one nothing is done.
    """
    stop = Stop()
    wanted = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    wanted = [one for one in wanted if signal.getsignal(one) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread() or os.name == "nt" or not wanted:
        yield stop
        return
    before = {one: signal.signal(one, stop) for one in wanted}
    seen, signalled = os.pipe()
    os.set_blocking(signalled, False)
    others = signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(seen, {int(one) for one in wanted}, stop), daemon=True).start()
    try:
        yield stop
    finally:
        if not stop.number:  # else the thread sees to it that the process does end
            signal.set_wakeup_fd(others)
            for one, handler in before.items():
                signal.signal(one, handler)
            os.close(signalled)


def _watch(seen: int, wanted: set[int], stop: Stop) -> None:
    """Reads the numbers of signals until the pipe is closed; at the first, ends the process at the next or in time."""
    first = _next(seen, wanted)
    if first is None:
        os.close(seen)
        return
    if select.select([seen], [], [], GRACE_SECONDS)[0]:
        _next(seen, wanted)
    stop.say()
    os._exit(128 + first)


def _next(seen: int, wanted: set[int]) -> int | None:
    """The next signal that is wanted; None where there will be none."""
    while numbers := os.read(seen, 1):
        if numbers[0] in wanted:
            return numbers[0]
    return None
