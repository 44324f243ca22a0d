"""How long runs take, two things in turn, so that what else the machine does meets both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

WARM_UP, FEWEST, MOST, SECONDS = 3, 10, 300, 3.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Milliseconds of a run: the median, and the quartiles around it."""

    median_ms: float
    lower_ms: float
    upper_ms: float
    runs: int


def timed(runs: Mapping[str, Callable[[], object]], seconds: float = SECONDS) -> dict[str, Speed]:
    """Times functions by name, in turn, for about so many seconds in all."""
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for count in range(MOST):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            taken[name].append(1e3 * (time.perf_counter() - begun))
        if count + 1 >= FEWEST and time.perf_counter() - started > seconds:
            break
    quartiles = {name: np.quantile(times, [0.5, 0.25, 0.75]) for name, times in taken.items()}
    return {
        name: Speed(float(middle), float(lower), float(upper), len(taken[name]))
        for name, (middle, lower, upper) in quartiles.items()
    }
