"""Which points of a front to finish."""

from __future__ import annotations

from hwmodel import InputError
from mpsearch.optimization.front import ParetoFront


def picked(front: ParetoFront, text: str) -> list[tuple[str, int]]:
    """Name and index of every point that `budget`, `knee`, `12` or `all:8` means. Raises InputError for others."""
    if text == "budget":
        return [("budget", front.best())]
    if text == "knee":
        return [("knee", front.knee())]
    if text.isdecimal() and int(text) < len(front):
        return [(f"point-{int(text)}", int(text))]
    kind, _, count = text.partition(":")
    if kind == "all" and count.isdecimal() and int(count) >= 4:
        return [(f"point-{index}", index) for index in front.thin(int(count))]
    raise InputError(
        f"--pick takes budget, knee, a point from 0 to {len(front) - 1}, or all:N with N ≥ 4; got {text!r}"
    )
