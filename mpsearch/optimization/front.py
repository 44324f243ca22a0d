"""The Pareto front: what the search found, as a record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from moocore import is_nondominated
from numpy.typing import NDArray

from hwmodel.errors import BudgetError, InputError
from hwmodel.json_text import parse_json
from hwmodel.precision import BitConfig, Precision

LOSS = "loss"

LARGEST = 1e30  # objective: no cost is so large, and pages keep them in single precision


@dataclass(frozen=True, slots=True)
class ParetoFront:
    """P configurations of L layers, none better than another in all M objectives, by ascending second objective.

    `choices` (P, L) are indices into `precisions`; `objectives` (P, M) are minimised, in the units of `names` (`loss`
    in nats). `budgets` are those that the search was given. `evaluations` counts the configurations looked at,
    `hypervolume` is the history by generation (its end is the front's), in units of the problem's box, loss on a log
    axis.
    """

    layers: tuple[str, ...]
    precisions: tuple[Precision, ...]
    names: tuple[str, ...]
    choices: NDArray[np.int16]
    objectives: NDArray[np.float64]
    budgets: tuple[tuple[str, float], ...]
    evaluations: int
    hypervolume: tuple[float, ...]
    seed: int
    fingerprint: str

    def __post_init__(self) -> None:
        n_points = len(self.choices)
        for name, shape in (("choices", (n_points, len(self.layers))), ("objectives", (n_points, len(self.names)))):
            if getattr(self, name).shape != shape or not n_points:
                raise InputError(f"front: {name} must have shape {shape}, P > 0, got {getattr(self, name).shape}")
        if len(self.names) < 2 or self.names[0] != LOSS:
            raise InputError(f"front: objectives must be loss and costs, got {', '.join(map(str, self.names))}")
        if self.choices.min() < 0 or self.choices.max() >= len(self.precisions):
            raise InputError(f"front: choices must be among {len(self.precisions)} precisions, from 0")
        if not (np.abs(self.objectives) < LARGEST).all():
            raise InputError(f"front: objectives must be numbers below {LARGEST:g}")

    def __len__(self) -> int:
        return len(self.choices)

    def config(self, index: int) -> BitConfig:
        """The bit assignment of one point."""
        return BitConfig(self.layers, tuple(self.precisions[choice] for choice in self.choices[index]))

    def best(self, budgets: Mapping[str, float] | None = None) -> int:
        """The point with the least loss within upper bounds on objectives; within the search's own where none is given.

        Raises InputError for a bound on what is no objective, BudgetError where no point is within.
        """
        limits = {name: limit for name, limit in self.budgets if name in self.names} if budgets is None else budgets
        inside = np.ones(len(self), dtype=bool)
        for name, limit in limits.items():
            if name not in self.names:
                raise InputError(f"the front has no objective {name!r}; bound one of {', '.join(self.names)}")
            inside &= self.objectives[:, self.names.index(name)] <= limit * (1 + 1e-12)
        if not inside.any():
            least = {name: float(self.objectives[:, self.names.index(name)].min()) for name in limits}
            raise BudgetError(f"no point of the front meets {dict(limits)}; its smallest are {least}")
        return int(np.flatnonzero(inside)[self.objectives[inside, 0].argmin()])

    def knee(self) -> int:
        """The point farthest below the chord between the extremes, objectives scaled to [0, 1]."""
        low, high = self.objectives.min(axis=0), self.objectives.max(axis=0)
        return int(((self.objectives - low) / np.where(high > low, high - low, 1.0)).sum(axis=1).argmin())

    def thin(self, count: int) -> list[int]:
        """At most `count` points (4 or more) in order: extremes, the budget's best, the knee, then an even spread."""
        keep = {0, len(self) - 1, self.knee()}
        if any(name in self.names for name, _ in self.budgets):
            keep.add(self.best())
        position = self.objectives[:, 1]
        for target in np.linspace(position[0], position[-1], count):
            if len(keep) >= count:
                break
            keep.add(int(np.abs(position - target).argmin()))
        return sorted(keep)

    def to_json(self) -> str:
        """Canonical text: the same result gives the same bytes. One point a line."""
        head = {
            "layers": self.layers,
            "precisions": [str(precision) for precision in self.precisions],
            "objectives": self.names,
            "budgets": dict(self.budgets),
            "evaluations": self.evaluations,
            "hypervolume": self.hypervolume,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
        }
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        points = zip(self.objectives.tolist(), self.choices.tolist(), strict=True)
        rows = ",\n".join(json.dumps([values, choices], separators=(",", ":")) for values, choices in points)
        return "{" + ",\n".join([*lines, f'"points": [\n{rows}\n]']) + "}\n"

    @classmethod
    def from_json(cls, text: str) -> ParetoFront:
        """The inverse of `to_json`. Raises InputError for any other text."""
        try:
            data: dict[str, Any] = parse_json(text)
            return cls(
                layers=tuple(data["layers"]),
                precisions=tuple(Precision.parse(name) for name in data["precisions"]),
                names=tuple(data["objectives"]),
                choices=np.array([choices for _, choices in data["points"]], dtype=np.int16),
                objectives=np.array([values for values, _ in data["points"]], dtype=np.float64),
                budgets=tuple(data["budgets"].items()),
                evaluations=data["evaluations"],
                hypervolume=tuple(map(float, data["hypervolume"])),
                seed=data["seed"],
                fingerprint=data["fingerprint"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not a front: {error}; search again") from None


def non_dominated(objectives: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the points of (P, M) that no other dominates, one of each set of equals, by ascending objective 1."""
    kept = np.flatnonzero(is_nondominated(objectives, keep_weakly=False))
    return kept[np.lexsort((objectives[kept, 0], objectives[kept, 1]))]
