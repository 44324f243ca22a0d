"""The box that a problem's objectives are scaled to, and the hypervolume in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pymoo.indicators.hv import HV

from mpsearch.optimization.problem import BitProblem


def hypervolume(problem: BitProblem, objectives: NDArray[np.float64]) -> float:
    """The share of the problem's box (loss on a log axis) that points (P, M) dominate: the measure of a front."""
    return Box.of(problem).hypervolume(objectives)


@dataclass(frozen=True, slots=True)
class Box:
    """Scales objectives to [0, 1]: loss on a log axis, because it spans decades; a monotone map keeps dominance."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, problem: BitProblem) -> Box:
        losses = problem.values(np.stack([np.zeros(len(problem.genes)), problem.sizes - 1]).astype(np.int16))[:, 0]
        high = float(max(losses.max(), 1e-300))
        low = float(losses.min()) if 0 < losses.min() < high else 1e-9 * high
        rows = [problem.cost_names.index(name) for name in problem.objectives[1:]]
        costs, fixed = problem.costs[rows], problem.fixed[rows]
        least = np.minimum.reduceat(costs, problem.start, axis=1).sum(axis=1) + fixed
        most = np.maximum.reduceat(costs, problem.start, axis=1).sum(axis=1) + fixed
        return cls(np.append(np.log(low), least), np.append(np.log(high), most))

    def scaled(self, objectives: NDArray[np.float64]) -> NDArray[np.float64]:
        """Objectives (P, M) in units of the box."""
        logs = objectives.copy()
        logs[:, 0] = np.log(np.maximum(objectives[:, 0], 1e-300))
        return np.asarray((logs - self.low) / np.where(self.high > self.low, self.high - self.low, 1.0))

    def hypervolume(self, objectives: NDArray[np.float64]) -> float:
        """The share of the box that points (P, M) dominate."""
        return float(HV(ref_point=np.ones(len(self.low)))(self.scaled(objectives).clip(0, 1)))
