"""Which points of a front to finish."""

from __future__ import annotations

from hwmodel import InputError
from mpsearch.optimization.front import ParetoFront

FEWEST = 4  # points that `all:N` may ask for
_TAKEN = "budget, knee, {}, or all:N with N ≥ 4"


def picked(front: ParetoFront, text: str) -> list[tuple[str, int]]:
    """Name and index of every point that `budget`, `knee`, `12` or `all:8` means. Raises InputError for others."""
    if text == "budget":
        return [("budget", front.best())]
    if text == "knee":
        return [("knee", front.knee())]
    if text.isdecimal() and int(text) < len(front):
        return [(f"point-{int(text)}", int(text))]
    count = _count(text)
    if count >= FEWEST:
        return [(f"point-{index}", index) for index in front.thin(count)]
    raise InputError(f"--pick takes {_TAKEN.format(f'a point from 0 to {len(front) - 1}')}; got {text!r}")


def require_pick(text: str) -> None:
    """Raises InputError for what means points of no front."""
    if text not in ("budget", "knee") and not text.isdecimal() and _count(text) < FEWEST:
        raise InputError(f"--pick takes {_TAKEN.format('the number of a point')}; got {text!r}")


def _count(text: str) -> int:
    """The N of `all:N`; 0 for anything else."""
    kind, _, count = text.partition(":")
    return int(count) if kind == "all" and count.isdecimal() else 0
