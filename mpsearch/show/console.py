"""What a user sees while it works: progress on stderr (plain lines where it is no terminal), results on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from mpsearch.show.columns import WIDTH
from recon.fit.report import BlockReport
from recon.settings import Settings

PLAIN_SECONDS = 10.0


class Advance(Protocol):
    """Tells a bar how many units are done, and a remark on where it stands."""

    def __call__(self, done: int, text: str = "") -> None: ...


@dataclass
class Console:
    """Two streams, in notebooks too: `log` for people (stderr), `out` for results (stdout)."""

    log: RichConsole = field(
        default_factory=lambda: RichConsole(stderr=True, highlight=False, soft_wrap=True, force_jupyter=False)
    )
    out: RichConsole = field(default_factory=lambda: results(sys.stdout))
    prefix: str = ""  # says whose lines they are, where several write

    def note(self, text: str) -> None:
        """One line about what is going on."""
        self.log.print(f"{self.prefix}{text}", markup=False)

    def current(self, step: str, text: str) -> None:
        """A step that need not run."""
        self.note(f"{step}: {text}")

    @contextmanager
    def progress(self, step: str, total: int) -> Iterator[Advance]:
        """A bar for `total` units of work; call what it gives with how many are done and, if there is, a remark."""
        if self.log.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(step, total=total)
                yield lambda done, text="": bar.update(task, completed=done, description=f"{step} {text}".strip())
        else:
            self.note(f"{step}: started")
            started = last = time.monotonic()

            def advance(done: int, text: str = "") -> None:
                nonlocal last
                now = time.monotonic()
                if now - last >= PLAIN_SECONDS:
                    last = now
                    self.note(f"{step}: {done}/{total}, {now - started:.0f} s{text and ', ' + text}")

            yield advance
            self.note(f"{step}: done in {time.monotonic() - started:.1f} s")

    @contextmanager
    def finalizing(self, units: int, settings: Settings) -> Iterator[FinalizeWatch]:
        """Progress over units, a line for each with its loss before and after."""
        with self.progress("finalize", units * settings.steps) as advance:
            yield FinalizeWatch(self, advance, settings)

    def _bar(self) -> RichProgress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        return RichProgress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.log, transient=True)


def results(stream: TextIO) -> RichConsole:
    """Tables keep their columns where nothing says how wide the reader's window is."""
    width = None if stream.isatty() else WIDTH
    return RichConsole(file=stream, highlight=False, soft_wrap=True, width=width, force_jupyter=False)


@dataclass
class FinalizeWatch:
    """Turns the callbacks of a reconstruction into progress."""

    console: Console
    advance: Advance
    settings: Settings
    done: int = 0

    def block(self, report: BlockReport) -> None:
        """A unit is finished."""
        self.done += self.settings.steps
        bits = ",".join(map(str, report.bits))
        kept = "  put back to plain rounding: reconstruction was worse" if report.outcome == "nearest" else ""
        change = f"{report.loss_before:.4f} → {report.loss_after:.4f}"
        self.console.note(f"  {report.block:<28} bits {bits:<14} loss {change}  {report.seconds:5.1f} s{kept}")
        self.advance(self.done)
