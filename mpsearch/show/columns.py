"""A table that suits the reader's window: columns go before numbers are cut."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table

from mpsearch.request.budgets import COSTS
from mpsearch.request.units import format_number

LEAST = 16  # characters that a column of words may be squeezed to
ENDLESS = 10_000  # characters: no window
WIDTH = 110  # characters, where nothing says how wide the window is


class Columns(Table):
    """A table that leaves out columns, those of `first_to_go` in that order, where the terminal has no room for all.

    What was left out is said below it. No cell is ever cut: where even the columns that stay are too wide, and in files
    and pipes, lines are as long as they are.
    """

    def __init__(self, first_to_go: Sequence[str] = ()) -> None:
        super().__init__(box=box.SIMPLE_HEAD, pad_edge=False)
        self.first_to_go = tuple(first_to_go)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        gone: list[str] = []
        shown, width = self, self._needs(console, options)
        for name in self.first_to_go:
            if width <= options.max_width or not console.is_terminal:
                break
            if any(column.header == name for column in shown.columns):
                gone.append(name)
                shown = self._without(gone)
                width = shown._needs(console, options)
        yield from Table.__rich_console__(shown, console, options.update_width(max(width, options.max_width)))
        if gone:
            yield f"not shown (needs a window {self._needs(console, options)} wide): {', '.join(filter(None, gone))}"

    def _without(self, names: Sequence[str]) -> Columns:
        """The same table with fewer columns."""
        found = Columns()
        found.padding, found.collapse_padding = self.padding, self.collapse_padding
        found.columns = [
            replace(column, _index=index, _cells=list(column.cells))
            for index, column in enumerate(column for column in self.columns if column.header not in names)
        ]
        found.rows = self.rows
        return found

    def _needs(self, console: Console, options: ConsoleOptions) -> int:
        """How wide it must be, so that nothing is cut."""
        endless = options.update_width(ENDLESS)
        natural = Table.__rich_measure__(self, console, endless).maximum
        return natural - sum(_spare(column.no_wrap, list(map(str, column.cells))) for column in self.columns)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self._needs(console, options), self._needs(console, options))


def _spare(whole: bool, cells: Sequence[str]) -> int:
    """By how much a column of words may be squeezed."""
    return 0 if whole else max(max(map(cell_len, cells), default=0) - LEAST, 0)


def columns(*headings: str, first_to_go: Sequence[str] = ()) -> Columns:
    """A table of numbers (`>heading`, at the right), names (`heading`) and sentences (`~heading`, which may wrap)."""
    view = Columns(first_to_go)
    for heading in headings:
        side: Literal["left", "right"] = "right" if heading.startswith(">") else "left"
        view.add_column(heading.lstrip(">~"), justify=side, no_wrap=not heading.startswith("~"), overflow="fold")
    return view


def every_other(names: Sequence[str]) -> Iterator[str]:
    """The order in which columns of a kind go: always those between others, first and last at the very end."""
    left = list(names)
    while len(left) > 2:
        gone = left[1:-1:2]
        yield from gone
        left = [name for name in left if name not in gone]
    yield from left[:-1]


def heading(name: str) -> str:
    """The heading of a column of costs."""
    return "file bytes" if name == "size_bytes" else f"{COSTS[name].title}, {COSTS[name].shown}"


def shown_cost(name: str, value: float) -> str:
    """A cost in the unit of its heading."""
    return f"{value:,.0f}" if name == "size_bytes" else format_number(value * COSTS[name].scale)


def as_text(*parts: Table | str) -> str:
    """Tables and lines as plain text, 110 characters wide."""
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, highlight=False, markup=False)
    for part in parts:
        console.print(part)
        console.print()
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip() + "\n"
