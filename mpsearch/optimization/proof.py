"""What no configuration beats: exhaustive search, branch and bound, and a lower bound of the loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, eigvalsh

from hwmodel.errors import InputError
from mpsearch.optimization.baselines import (
    exact_additive,
    greedy,
)
from mpsearch.optimization.front import non_dominated
from mpsearch.optimization.knapsack import knapsack_front
from mpsearch.optimization.local import local_search
from mpsearch.optimization.milp import per_gene_minimum, relaxed_additive, solve_additive
from mpsearch.optimization.problem import BitProblem, Genomes, within

_EXHAUSTIVE = 5_000_000


_BRANCHES = 200_000  # open partial genomes of a branch and bound


def _all_genomes(problem: BitProblem) -> Genomes:
    count = float(np.prod(problem.sizes.astype(np.float64)))
    if count > _EXHAUSTIVE:
        raise InputError(f"exhaustive search takes at most {_EXHAUSTIVE:,} configurations, here are {count:.3g}")
    return np.indices(tuple(problem.sizes), dtype=np.int16).reshape(len(problem.sizes), -1).T


def brute_force(problem: BitProblem) -> Genomes | None:
    """The genome (G,) with the least loss within all budgets, of all there are. Raises InputError above 5 million."""
    genomes = _all_genomes(problem)
    genomes = genomes[problem.feasible(genomes)]
    return genomes[problem.values(genomes)[:, 0].argmin()] if len(genomes) else None


def brute_force_front(problem: BitProblem) -> Genomes:
    """All non-dominated genomes (P, G) within the constraints. Raises InputError above 5 million."""
    genomes = _all_genomes(problem)
    values = problem.values(genomes)
    met = np.flatnonzero(within(problem.excess(values, problem.constraints)))
    return genomes[met[non_dominated(problem.pick(values[met], problem.objectives))]]


def branch_and_bound(problem: BitProblem) -> Genomes | None:
    """The genome (G,) with the least loss within all budgets, interactions included: exact, for about 12 free genes.

    Breadth first: partial genomes are extended gene by gene and dropped where no completion can undercut the incumbent,
    which local search gives. The bound takes each open gene's least share: its own loss, all that it shares with the
    decided genes, and for each other open gene half of their least common term; budgets enter with Lagrange multipliers
    and as a test of what can still be met. Raises InputError where more than 200,000 partial genomes stay open.
    """
    starts = [start for start in (greedy(problem), exact_additive(problem)) if start is not None]
    if not starts:
        return None
    ends = np.array([local_search(problem, start) for start in starts])
    losses = problem.values(ends)[:, 0]
    best, incumbent = np.asarray(ends[losses.argmin()]), float(losses.min())
    owner, start = problem.owner, problem.start
    least = np.minimum.reduceat(problem.pair, start, axis=1)  # (N, G): the least common term with any choice of a gene
    rows = [problem.cost_names.index(name) for name, _ in problem.budgets]
    costs = problem.costs[rows]
    limits = np.array([limit for _, limit in problem.budgets]) * (1 + 1e-12) - problem.fixed[rows]
    prices = _prices(problem, costs, limits)
    order = np.argsort(-np.add.reduceat(np.abs(least).sum(axis=1) + problem.linear, start) * (problem.sizes > 1))
    partial = np.zeros((1, 0), dtype=np.intp)  # flat indices of the decided genes, in `order`
    field = np.zeros((1, len(owner)))  # linear and decided pair terms of every choice
    field += problem.linear
    decided_loss = np.zeros(1)
    for depth, gene in enumerate(order):
        choices = np.arange(start[gene], start[gene] + problem.sizes[gene])
        decided_loss = (decided_loss[:, None] + field[:, choices]).ravel()
        field = (field[:, None] + 2 * problem.pair[choices]).reshape(-1, len(owner))
        partial = np.column_stack([partial.repeat(len(choices), axis=0), np.tile(choices, len(partial))])
        still = order[depth + 1 :]
        columns = np.flatnonzero(np.isin(owner, still))
        spent = costs[:, partial].sum(axis=2)
        alive = np.ones(len(partial), dtype=bool)
        bound = decided_loss.copy()
        if len(columns):
            begins = np.flatnonzero(np.diff(owner[columns], prepend=-1))
            room = limits[:, None] - spent
            alive &= (np.minimum.reduceat(costs[:, columns], begins, axis=1).sum(axis=1)[:, None] <= room).all(axis=0)
            share = field[:, columns] + least[np.ix_(columns, still)].sum(axis=1)
            bound = np.full(len(partial), -np.inf)
            for price in prices:
                open_loss = np.minimum.reduceat(share + price @ costs[:, columns], begins, axis=1).sum(axis=1)
                bound = np.maximum(bound, decided_loss + open_loss - price @ room)
        else:
            alive &= (spent <= limits[:, None]).all(axis=0)
        alive &= bound < incumbent * (1 - 1e-12)
        if alive.sum() > _BRANCHES:
            raise InputError(f"branch and bound takes about 12 free layers; here {alive.sum():,} branches stay open")
        partial, field, decided_loss = partial[alive], field[alive], decided_loss[alive]
        if not len(partial):
            return best
    genome = np.empty(len(order), dtype=np.int16)
    genome[order] = partial[decided_loss.argmin()] - start[order]
    return genome


def _prices(problem: BitProblem, costs: NDArray[np.float64], limits: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Lagrange multipliers (B,) to try, in nats per unit of cost: none, and a range about the additive slope."""
    prices = [np.zeros(len(limits))]
    for row, (cost, limit) in enumerate(zip(costs, limits, strict=True)):
        genomes, sums = knapsack_front(problem, problem.linear, cost, 2000)
        at = min(max(int(np.searchsorted(sums[:, 1], limit)), 1), len(genomes) - 1)
        if at < 1 or sums[at, 1] == sums[max(at - 20, 0), 1]:
            continue
        slope = (sums[max(at - 20, 0), 0] - sums[at, 0]) / (sums[at, 1] - sums[max(at - 20, 0), 1])
        for factor in (0.3, 0.6, 1.0, 1.6):
            prices.append(np.where(np.arange(len(limits)) == row, factor * slope, 0.0))
    return prices


def lower_bound(problem: BitProblem, iterations: int = 100) -> float:
    """A loss (nats) that no genome within the budgets undercuts, interactions included; infinite where none is within.

    Quadratic convex reformulation (Billionnet and Elloumi, 2007): where one choice per gene is 1 and the others 0,
    x² = x and products inside a gene are 0, so the quadratic form may take any terms inside a gene that make it convex.
    The convex loss lies above its tangent at any point, and the least value of the tangent over the budgets is found by
    milp. The tangent point comes from Frank-Wolfe steps over the linear relaxation. Every reformulation gives a valid
    bound; the best of a few is returned, 1e-5 of it given up to the solver's tolerances.
    """
    if exact_additive(problem) is None:
        return float("inf")
    shapes = ((0.3, 0.3), (0.5, 0.4), (0.8, 0.55), (0.9, 0.6), (1.0, 0.67)) if problem.pair.any() else ((0.0, 0.0),)
    return max(_tangent_bound(problem, *_convex(problem, *shape), iterations) for shape in shapes)


def _convex(
    problem: BitProblem, diagonal: float, shared: float, projections: int = 20
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Linear (N,) and positive semidefinite quadratic (N, N) terms that equal the loss on every genome.

    Relative to the roots of the choices' own losses, terms inside a gene begin at `diagonal`, and `shared` off it;
    alternating projections bring them near a semidefinite completion, a multiple of the unit matrix closes the rest.
    """
    floor = 1e-9 * (float(np.abs(problem.linear).max()) or 1.0)
    root = np.sqrt(np.maximum(problem.linear, floor))
    same = problem.owner[:, None] == problem.owner
    between = problem.pair / np.outer(root, root)
    form = between + shared * same
    form[np.diag_indices_from(form)] = diagonal
    for _ in range(projections if between.any() else 0):
        values, vectors = eigh(form)
        form = np.where(same, (vectors * np.maximum(values, 0.0)) @ vectors.T, between)
    form[np.diag_indices_from(form)] += max(0.0, 1e-10 - float(eigvalsh(form, subset_by_index=(0, 0))[0]))
    return problem.linear - form.diagonal() * root**2, form * np.outer(root, root)


def _tangent_bound(
    problem: BitProblem, linear: NDArray[np.float64], quadratic: NDArray[np.float64], iterations: int
) -> float:
    point = relaxed_additive(problem, linear, problem.budgets)
    for _ in range(iterations):
        slope = linear + 2 * quadratic @ point
        step = relaxed_additive(problem, slope, problem.budgets) - point
        fall, curve = -float(slope @ step), float(step @ quadratic @ step)
        if fall <= 1e-6 * abs(float(linear @ point + point @ quadratic @ point)):
            break
        point = point + min(1.0, fall / (2 * curve) if curve > 0 else 1.0) * step
    slope = linear + 2 * quadratic @ point
    corner = _least_within(problem, slope)
    if corner is None:
        return float("inf")
    base = float(per_gene_minimum(problem, slope)[problem.start].sum())
    tangent = float(slope[problem.flat(corner)].sum())
    return tangent - 1e-5 * (tangent - base) - float(point @ quadratic @ point)


def _least_within(problem: BitProblem, weights: NDArray[np.float64]) -> Genomes | None:
    """`solve_additive` within the budgets; where the only one is of whole bytes, by dynamic programming: sooner."""
    if [name for name, _ in problem.budgets] != ["size_bytes"]:
        return solve_additive(problem, weights, problem.budgets)
    row = problem.cost_names.index("size_bytes")
    genomes, sums = knapsack_front(problem, weights, problem.costs[row])
    within_limit = sums[:, 1] + problem.fixed[row] <= problem.budgets[0][1] * (1 + 1e-12)
    return genomes[np.flatnonzero(within_limit)[-1]] if within_limit.any() else None
