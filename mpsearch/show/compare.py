"""Fronts of several runs over each other, on the first cost that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.indicators.hv import HV

from hwmodel import InputError
from mpsearch.files.folder import Json
from mpsearch.optimization.front import LOSS, ParetoFront, non_dominated
from mpsearch.tasks.figure import KL, Figure, headline, read_figures


@dataclass(frozen=True, slots=True)
class Measured:
    """A finished point `index` of a front: its cost, its KL divergence in nats, and the task's first metric, which is
    `figure` with a `value`, where the task has one beside KL."""

    name: str
    index: int
    cost: float
    predicted: float
    kl: float
    figure: Figure | None
    value: float | None


@dataclass(frozen=True, slots=True)
class RunFront:
    """One run's non-dominated points: `cost` (P,) ascending and predicted `loss` (P,), and what was finished.

    `hypervolume` is the share of the box around all fronts (loss on a log axis) that this one dominates.
    """

    run: str
    model: str
    cost: tuple[float, ...]
    loss: tuple[float, ...]
    hypervolume: float
    measured: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Fronts side by side: `losses[i][r]` is the least loss of run r within `at[i]`, None where it has no point."""

    cost: str
    fronts: tuple[RunFront, ...]
    at: tuple[float, ...]
    losses: tuple[tuple[float | None, ...], ...]
    same_cache: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)


def compare(runs: Sequence[tuple[str, str, ParetoFront, Sequence[tuple[str, Json]]]], count: int = 10) -> Comparison:
    """Compares runs, each (name, model, front, finished configurations), at `count` values of the shared cost.

    Raises InputError where no cost is an objective of all.
    """
    shared = [name for name in runs[0][2].names[1:] if all(name in front.names for _, _, front, _ in runs)]
    if not shared:
        spans = "; ".join(f"{name} over {', '.join(front.names[1:])}" for name, _, front, _ in runs)
        raise InputError(f"these fronts share no cost: {spans}")
    cost = shared[0]
    points = [_two(front, cost) for _, _, front, _ in runs]
    everything = np.concatenate(points)
    low, high = np.log(np.maximum(everything, 1e-300)).min(axis=0), np.log(np.maximum(everything, 1e-300)).max(axis=0)
    low[1], high[1] = everything[:, 1].min(), everything[:, 1].max()
    at = _round_spread(max(p[0, 1] for p in points), min(p[-1, 1] for p in points), count)
    budgets = [limit for _, _, front, _ in runs for name, limit in front.budgets if name == cost]
    at = np.unique(np.concatenate([at, budgets]))
    return Comparison(
        cost,
        tuple(
            RunFront(
                name,
                model,
                tuple(two[:, 1].tolist()),
                tuple(two[:, 0].tolist()),
                _share(two, low, high),
                measured_points(front, finished, cost),
            )
            for (name, model, front, finished), two in zip(runs, points, strict=True)
        ),
        tuple(at.tolist()),
        tuple(tuple(_least(two, limit) for two in points) for limit in at),
        len({front.fingerprint for _, _, front, _ in runs}) == 1,
    )


def measured_points(front: ParetoFront, finished: Sequence[tuple[str, Json]], cost: str = "") -> tuple[Measured, ...]:
    """The finished configurations that are points of the front, by ascending `cost`, the front's first if not given."""
    by_config = {tuple(entry["config"].items()): (name, entry) for name, entry in finished}
    found = []
    for index in range(len(front)) if finished else ():
        hit = by_config.get(tuple(front.config(index).to_json().items()))
        if hit is not None:
            name, entry = hit
            value = float(front.objectives[index, front.names.index(cost or front.names[1])])
            loss = float(front.objectives[index, 0])
            found.append(Measured(name, index, value, loss, *headline_of(entry)))
    return tuple(sorted(found, key=lambda point: point.cost))


def headline_of(entry: Json) -> tuple[float, Figure | None, float | None]:
    """KL, the first figure and its value of a finished configuration's record."""
    finished, figure = entry["metrics"]["finished"], headline(read_figures(entry))
    return finished[KL], figure, None if figure is None else finished[figure.name]


def _two(front: ParetoFront, cost: str) -> NDArray[np.float64]:
    """Loss and `cost` (P, 2) of the points that are non-dominated in these two, by ascending cost."""
    values = front.objectives[:, [front.names.index(LOSS), front.names.index(cost)]]
    return values[non_dominated(values)]


def _share(points: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
    scaled = points.copy()
    scaled[:, 0] = np.log(np.maximum(points[:, 0], 1e-300))
    scaled = (scaled - low) / np.where(high > low, high - low, 1.0)
    return float(HV(ref_point=np.ones(2))(scaled.clip(0, 1)))


def _least(points: NDArray[np.float64], limit: float) -> float | None:
    at = int(np.searchsorted(points[:, 1], limit * (1 + 1e-12), side="right")) - 1
    return None if at < 0 else float(points[at, 0])


def _round_spread(low: float, high: float, count: int) -> NDArray[np.float64]:
    """About `count` round values from `low` to `high`."""
    if not low < high:
        return np.array([low])
    step = 10.0 ** np.floor(np.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= count)
    return np.asarray(np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step, dtype=np.float64)
