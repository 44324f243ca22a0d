"""Answers to hold the search against: uniform, greedy, exact, exhaustive, local search, and a lower bound."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, eigvalsh

from hwmodel.errors import InputError
from hwmodel.precision import BitConfig, Precision
from mpsearch.search.front import non_dominated
from mpsearch.search.problem import BitProblem, Genomes, per_gene_minimum, relaxed_additive, solve_additive, within

_EXHAUSTIVE = 5_000_000
_BRANCHES = 200_000  # open partial genomes of a branch and bound
_WIDE = 800  # above this many choices in all, pairs of moves are restricted to neighbouring precisions


@dataclass(frozen=True, slots=True)
class Answer:
    """A configuration by the way it was found; `costs` in the units of their names, `feasible` within all budgets."""

    name: str
    config: BitConfig
    loss: float
    costs: tuple[tuple[str, float], ...]
    feasible: bool


def answers(problem: BitProblem, found: Genomes | None = None) -> tuple[Answer, ...]:
    """Uniform answers, greedy, the exact additive one and what a search `found` (G,), for a table."""
    named: list[tuple[str, Genomes | None]] = [
        (f"uniform {precision}", genome) for precision, genome in uniform(problem)
    ]
    named += [("greedy", greedy(problem)), ("exact additive", exact_additive(problem)), ("found", found)]
    return tuple(_answer(problem, name, genome) for name, genome in named if genome is not None)


def _answer(problem: BitProblem, name: str, genome: Genomes) -> Answer:
    values = problem.values(genome[None])
    loss, *costs = values[0].tolist()
    fits = bool(within(problem.excess(values))[0])
    return Answer(name, problem.config(genome), loss, tuple(zip(problem.cost_names, costs, strict=True)), fits)


def uniform(problem: BitProblem) -> list[tuple[Precision, Genomes]]:
    """For each candidate precision the genome (G,) that has it wherever it is allowed, else the nearest that is."""
    answers = []
    for index, precision in enumerate(problem.precisions):
        nearest = [int(np.abs(np.array(allowed) - index).argmin()) for allowed in problem.choices]
        answers.append((precision, np.array(nearest, dtype=np.int16)))
    return answers


def greedy_path(problem: BitProblem, price: NDArray[np.float64]) -> Iterator[Genomes]:
    """Genomes (G,) from the highest choices down, by the step with the least full loss per saved `price` (N,)."""
    genome = (problem.sizes - 1).astype(np.int16)
    flat = problem.flat(genome)
    field = problem.linear + 2 * problem.pair[:, flat].sum(axis=1)
    while True:
        yield genome.copy()
        low = np.maximum(flat - 1, problem.start)
        saved = price[flat] - price[low]
        if not (saved > 0).any():
            return
        rate = np.full(len(flat), np.inf)
        np.divide(field[low] - field[flat], saved, out=rate, where=saved > 0)
        gene = int(rate.argmin())
        field += 2 * (problem.pair[:, low[gene]] - problem.pair[:, flat[gene]])
        genome[gene] -= 1
        flat[gene] -= 1


def greedy(problem: BitProblem) -> Genomes | None:
    """The first genome (G,) of the greedy path that meets all budgets, each priced relative to its limit; else None."""
    price = np.zeros(len(problem.linear))
    for name, limit in problem.budgets:
        price += problem.costs[problem.cost_names.index(name)] / limit
    path = np.array(list(greedy_path(problem, price)))
    fits = np.flatnonzero(problem.feasible(path))
    return path[fits[0]] if fits.size else None


def exact_additive(problem: BitProblem) -> Genomes | None:
    """The genome (G,) with the least additive loss, interactions left out, within all budgets: exact, by milp."""
    return solve_additive(problem, problem.linear, problem.budgets)


def hull(problem: BitProblem, cost: str) -> Genomes:
    """Genomes (K, G) on the lower convex hull of additive loss over a cost: the answers to all Lagrange multipliers."""
    price = problem.costs[problem.cost_names.index(cost)]
    genome = np.empty(len(problem.genes), dtype=np.int16)
    steps: list[tuple[float, int, int]] = []  # (loss per saved cost, gene, choice)
    for gene, (start, size) in enumerate(zip(problem.start, problem.sizes, strict=True)):
        chain = _lower_hull(price[start : start + size], problem.linear[start : start + size])
        genome[gene] = chain[0]
        for left, right in itertools.pairwise(chain):
            gain = problem.linear[start + left] - problem.linear[start + right]
            steps.append((-gain / (price[start + right] - price[start + left]), gene, right))
    genomes = [genome.copy()]
    for _, gene, choice in sorted(steps):
        genome[gene] = choice
        genomes.append(genome.copy())
    return np.array(genomes)


def _lower_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[int]:
    """Indices of the falling part of the lower convex hull of points, by ascending x."""
    chain: list[int] = []
    for index in non_dominated(np.stack([y, x], axis=1)).tolist():
        while len(chain) > 1:
            a, b = chain[-2:]
            if (y[a] - y[b]) * (x[index] - x[b]) > (y[b] - y[index]) * (x[b] - x[a]):
                break
            chain.pop()
        chain.append(index)
    return chain


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


def local_search(problem: BitProblem, start: Genomes) -> Genomes:
    """The best genome (G,) reached from a feasible one by best moves of one or two genes, all budgets kept.

    Each step changes the pair of genes with the largest fall of the full loss, until there is none. Where the genes
    have more than 800 choices in all, a gene of a pair moves to a neighbouring precision only.
    """
    limits = np.array([limit for _, limit in problem.budgets]) * (1 + 1e-12)
    rows = [problem.cost_names.index(name) for name, _ in problem.budgets]
    costs, fixed = problem.costs[rows], problem.fixed[rows]
    genome = start.copy()
    while True:
        flat = problem.flat(genome)
        moves = _moves(problem, genome)
        owner = problem.owner[moves]
        field = problem.linear[moves] + 2 * problem.pair[np.ix_(moves, flat)].sum(axis=1)
        here = np.searchsorted(moves, flat)
        delta = field - field[here][owner]
        cross = problem.pair[np.ix_(moves, flat)][:, owner]
        change = problem.pair[np.ix_(moves, moves)] - cross - cross.T
        change += problem.pair[np.ix_(flat, flat)][np.ix_(owner, owner)]
        change *= 2
        change += delta[:, None] + delta
        same = owner[:, None] == owner
        change[same] = 0.0
        change[np.diag_indices_from(change)] = delta
        room = limits - fixed - costs[:, flat].sum(axis=1)
        extra = costs[:, moves] - costs[:, flat][:, owner]
        for spare, more in zip(room, extra, strict=True):
            both = more[:, None] + more
            both[np.diag_indices_from(both)] = more
            change[both > spare] = 0.0
        first, second = np.unravel_index(change.argmin(), change.shape)
        loss = problem.linear[flat].sum() + problem.pair[np.ix_(flat, flat)].sum()
        if change[first, second] >= -1e-12 * abs(loss):
            return genome
        for move in (moves[first], moves[second]):
            gene = problem.owner[move]
            genome[gene] = move - problem.start[gene]


def _moves(problem: BitProblem, genome: Genomes) -> NDArray[np.intp]:
    """Flat indices of the choices that a gene may move to, its present one among them, ascending."""
    everything = np.arange(len(problem.linear))
    if len(everything) <= _WIDE:
        return everything
    return np.flatnonzero(np.abs(everything - problem.flat(genome)[problem.owner]) <= 1)


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
