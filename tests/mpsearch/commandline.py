"""What tests of the command line share: how a command is called, and what a refusal looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """What a command line left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


def refused(result: Result, *parts: str) -> None:
    """Exit code 2 and, beside progress, one line that says every one of `parts`."""
    assert result.code == 2, (result.out, result.err)
    assert result.out == ""
    assert "Traceback" not in result.err
    faults = [line for line in result.err.splitlines() if line.startswith("mpsearch: ")]
    assert len(faults) == 1, result.err
    assert result.err.rstrip().endswith(faults[0]), "more follows the line"
    for part in parts:
        assert part in faults[0], f"{part!r} is not in {faults[0]!r}"
