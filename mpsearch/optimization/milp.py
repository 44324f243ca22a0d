"""Exact answers where losses add up: a multiple-choice knapsack for HiGHS, and its linear relaxation."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, vstack

from hwmodel.errors import BudgetError
from mpsearch.optimization.problem import BitProblem, Genomes


def solve_additive(
    problem: BitProblem, weights: NDArray[np.float64], budgets: Sequence[tuple[str, float]]
) -> Genomes | None:
    """The genome (G,) with the least sum of `weights` (N,) under upper bounds on costs; None where there is none.

    A multiple-choice knapsack for `scipy.optimize.milp` (HiGHS), which stops at absolute tolerances of 1e-6, while
    sensitivities span many decades: so it is solved again with the objective scaled to the answer, and without the
    choices that alone cost more than it, until the scale fits.
    """
    gain = weights - per_gene_minimum(problem, weights)
    scale = float(gain.max()) or 1.0
    while True:
        genome = _milp(problem, gain / scale, gain <= scale, budgets)
        if genome is None:
            return None
        answer = float(gain[problem.flat(genome)].sum())
        if answer >= scale / 4 or answer == 0:
            return genome
        scale = answer * (1 + 1e-9)


def per_gene_minimum(problem: BitProblem, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """For every flat index (N,), the least of `weights` (N,) among the choices of its gene."""
    return np.repeat(np.minimum.reduceat(weights, problem.start), problem.sizes)


def relaxed_additive(
    problem: BitProblem, weights: NDArray[np.float64], budgets: Sequence[tuple[str, float]]
) -> NDArray[np.float64]:
    """The shares (N,) of choices, summing to 1 in each gene, with the least sum of `weights` (N,) under budgets.

    The linear relaxation of `solve_additive`. Raises BudgetError where the budgets cannot be met.
    """
    gain = weights - per_gene_minimum(problem, weights)
    result = milp(gain / (float(gain.max()) or 1.0), bounds=Bounds(0, 1), constraints=_knapsack(problem, budgets))
    if result.x is None:
        raise BudgetError("the budgets cannot be met together; raise one of them")
    return np.asarray(result.x, dtype=np.float64)


def _milp(
    problem: BitProblem,
    objective: NDArray[np.float64],
    usable: NDArray[np.bool_],
    budgets: Sequence[tuple[str, float]],
) -> Genomes | None:
    names = [name for name, _ in budgets]
    limits = np.array([limit for _, limit in budgets])
    over = np.zeros(len(limits))
    for _ in range(10):
        with _without_stdout():
            result = milp(
                np.where(usable, objective, 0.0),
                integrality=np.ones(len(objective), dtype=np.int64),
                bounds=Bounds(0, usable.astype(float)),
                constraints=_knapsack(problem, list(zip(names, limits - over, strict=True))),
                options={"mip_rel_gap": 1e-7},
            )
        if result.x is None:
            return None
        genome = _rounded(problem, result.x)
        excess = problem.pick(problem.values(genome[None]), names)[0] - limits
        if (excess <= 1e-12 * limits).all():
            return genome
        over += np.maximum(excess, 0.0)  # HiGHS may pass a bound by its tolerance
    return None


@contextmanager
def _without_stdout() -> Iterator[None]:
    """HiGHS prints debugging lines straight to the process's stdout, where only results belong."""
    sys.stdout.flush()
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        _flush_c()
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


def _flush_c() -> None:
    """Writes what C has buffered, where its library is to be had."""
    with suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None).fflush(None)


def _knapsack(problem: BitProblem, budgets: Sequence[tuple[str, float]]) -> LinearConstraint:
    """One choice per gene, within the budgets; costs count from each gene's least and are scaled to 1."""
    index = [problem.cost_names.index(name) for name, _ in budgets]
    minima = np.minimum.reduceat(problem.costs[index], problem.start, axis=1)
    rows = problem.costs[index] - np.repeat(minima, problem.sizes, axis=1)
    scale = rows.max(axis=1, initial=0.0)
    scale[scale == 0] = 1.0
    limits = np.array([limit * (1 + 1e-12) for _, limit in budgets])
    room = (limits - problem.fixed[index] - minima.sum(axis=1)) / scale
    ones = np.ones(len(problem.genes))
    matrix = vstack([_one_per_gene(problem), csr_matrix(rows / scale[:, None])])
    return LinearConstraint(matrix, np.r_[ones, np.full(len(index), -np.inf)], np.r_[ones, room])


def _one_per_gene(problem: BitProblem) -> csr_matrix:
    owner = problem.owner
    return csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))))


def _rounded(problem: BitProblem, solution: NDArray[np.float64]) -> Genomes:
    """The genome (G,) of a solver's 0-1 vector (N,)."""
    padded = np.full((len(problem.genes), problem.sizes.max()), -1.0)
    padded[problem.owner, np.arange(len(solution)) - problem.start[problem.owner]] = solution
    return np.asarray(padded.argmax(axis=1), dtype=np.int16)
