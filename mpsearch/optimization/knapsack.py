"""Exact fronts of an additive loss over one cost, by dynamic programming."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpsearch.optimization.front import non_dominated
from mpsearch.optimization.problem import BitProblem, Genomes


def exact_front(problem: BitProblem, cost: str = "size_bytes") -> tuple[Genomes, NDArray[np.float64]]:
    """The exact front of additive loss over one cost: genomes (P, G) and [loss, cost] (P, 2), by ascending cost.

    Interactions are left out; exact but for the rounding of sums.
    """
    k = problem.cost_names.index(cost)
    genomes, totals = knapsack_front(problem, problem.linear, problem.costs[k])
    return genomes, totals + np.array([0.0, problem.fixed[k]])


def knapsack_front(
    problem: BitProblem, weights: NDArray[np.float64], price: NDArray[np.float64], states: int | None = None
) -> tuple[Genomes, NDArray[np.float64]]:
    """All non-dominated sums of `weights` (N,) and `price` (N,): genomes (P, G) and sums (P, 2), by ascending price.

    Dynamic programming gene by gene over the non-dominated partial sums, of which there may be many; with `states`, an
    even choice of so many is kept at each gene, and the front is a good one rather than the exact one.
    """
    totals = np.zeros((1, 2))
    trail: list[tuple[NDArray[np.int16], NDArray[np.int32]]] = []
    for start, size in zip(problem.start, problem.sizes, strict=True):
        steps = np.stack([weights[start : start + size], price[start : start + size]], axis=1)
        grown = (steps[:, None] + totals).reshape(-1, 2)
        kept = non_dominated(grown)
        if states and len(kept) > states:
            kept = kept[np.linspace(0, len(kept) - 1, states).astype(np.intp)]
        trail.append(((kept // len(totals)).astype(np.int16), (kept % len(totals)).astype(np.int32)))
        totals = grown[kept]
    genomes = np.empty((len(totals), len(trail)), dtype=np.int16)
    at = np.arange(len(totals), dtype=np.int32)
    for gene in range(len(trail) - 1, -1, -1):
        choice, parent = trail[gene]
        genomes[:, gene] = choice[at]
        at = parent[at]
    return genomes, totals
