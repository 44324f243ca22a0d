"""Fills a front: by exact fronts of the loss linearized about its points, then by its points' neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpsearch.optimization.front import non_dominated
from mpsearch.optimization.knapsack import knapsack_front
from mpsearch.optimization.problem import BitProblem, Genomes, within

_BATCH = 200_000  # neighbours that are compared with the front together
_POINTS = 20_000  # a front of so many is full enough
_TANGENTS = 16  # points that the loss is linearized about together; fewer where there are more than 60 genes
_STATES = 1_000_000  # partial sums of a linearized front, over all genes


def fill_by_tangents(problem: BitProblem, genomes: Genomes, rounds: int = 2) -> tuple[Genomes, int]:
    """A front at least as good as the non-dominated `genomes` (P, G), and the number of configurations looked at.

    About a point, the loss without the interactions of changes is additive, and its whole front over a cost is found by
    dynamic programming: moves of many genes at once, which neighbours do not reach. Where there are no interactions,
    this is the exact front. Of three objectives, the two costs are traded for one another at several rates.
    """
    rows = [problem.cost_names.index(name) for name in problem.objectives[1:]]
    scaled = [problem.costs[row] / (np.ptp(problem.costs[row]) or 1.0) for row in rows]
    shares = (1.0,) if len(rows) == 1 else (1.0, 0.75, 0.5, 0.25, 0.0)
    prices = [problem.costs[rows[0]] if share == 1 else share * scaled[0] + (1 - share) * scaled[1] for share in shares]
    states = max(_STATES // len(problem.genes), 1000)
    together = min(_TANGENTS, max(1000 // len(problem.genes), 2))
    seen = 0
    for _ in range(rounds if problem.pair.any() else 1):
        loss = problem.values(genomes)[:, 0]
        found = [genomes]
        for turn, index in enumerate(_spread(loss, together) if problem.pair.any() else [0] * len(prices)):
            field = problem.linear + 2 * problem.pair[problem.flat(genomes[index])].sum(axis=0)
            around = knapsack_front(problem, field, prices[turn % len(prices)], states)[0]
            seen += len(around)
            found.append(around[within(problem.excess(problem.values(around), problem.constraints))])
        everything = np.concatenate(found)
        genomes = everything[non_dominated(problem.evaluate(everything))]
    return genomes, seen


def refine(problem: BitProblem, genomes: Genomes, neighbours: int) -> tuple[Genomes, int]:
    """A front at least as good as the non-dominated `genomes` (P, G), and the number of neighbours looked at.

    Pareto local search (Paquete, Chiarandini and Stützle, 2004). A neighbour has one gene a step up, or one a step
    down, or both. Points whose neighbours were not seen yet are taken from all over the front, until there is none or
    `neighbours` have been looked at.
    """
    values = problem.values(genomes)
    explored: set[bytes] = set()
    seen = 0
    together = max(1, _BATCH // (genomes.shape[1] + 1) ** 2)
    while seen < neighbours and len(genomes) < _POINTS:
        fresh = [index for index, genome in enumerate(genomes) if genome.tobytes() not in explored]
        if not fresh:
            break
        chosen = [fresh[index] for index in _spread(values[fresh, 0], together)]
        explored.update(genomes[index].tobytes() for index in chosen)
        around = np.array([_values_around(problem, genomes[index], values[index]) for index in chosen])
        seen += around.shape[0] * around.shape[1]
        everything = np.concatenate([values, around.reshape(-1, around.shape[2])])
        better = non_dominated(problem.pick(everything, problem.objectives)) - len(genomes)
        centre, move = np.divmod(better[better >= 0], around.shape[1])
        genomes = np.concatenate([genomes, _moved(genomes[chosen][centre], move)])
        values = problem.values(genomes)  # anew: differences leave rounding errors
        kept = non_dominated(problem.pick(values, problem.objectives))
        genomes, values = genomes[kept], values[kept]
    return genomes, seen


def _spread(loss: NDArray[np.float64], count: int) -> list[int]:
    """Up to `count` indices into `loss` (P,): half evenly by rank, half by log loss, for the steep and sparse ends."""
    logs = np.log(np.maximum(loss, 1e-300))
    order = np.argsort(logs, kind="stable")
    by_rank = np.linspace(0, len(loss) - 1, (count + 1) // 2).astype(int)
    by_loss = np.searchsorted(logs[order], np.linspace(logs.min(), logs.max(), count // 2)).clip(0, len(loss) - 1)
    return sorted({int(index) for index in order[np.concatenate([by_rank, by_loss])]})


def _values_around(problem: BitProblem, genome: Genomes, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Loss and costs ((G + 1)², 1 + K) with gene i a step up and gene j a step down; G stands for no gene.

    `values` (1 + K,) are those of `genome`. What is no move, or breaks a constraint, is infinite.
    """
    n_genes, flat = len(genome), problem.flat(genome)
    up = np.minimum(flat + 1, problem.start + problem.sizes - 1)
    down = np.maximum(flat - 1, problem.start)
    rows = np.vstack([problem.linear + 2 * problem.pair[flat].sum(axis=0), problem.costs])
    around = np.tile(values[:, None, None], (1, n_genes + 1, n_genes + 1))
    around[:, :n_genes] += (rows[:, up] - rows[:, flat])[:, :, None]
    around[:, :, :n_genes] += (rows[:, down] - rows[:, flat])[:, None]
    here = problem.pair[np.ix_(flat, flat)]
    cross = problem.pair[np.ix_(up, down)] - problem.pair[np.ix_(up, flat)] - problem.pair[np.ix_(flat, down)] + here
    around[0, :n_genes, :n_genes] += 2 * cross
    around[:, np.append(up == flat, False)] = np.inf
    around[:, :, np.append(down == flat, False)] = np.inf
    around[:, np.arange(n_genes + 1), np.arange(n_genes + 1)] = np.inf
    around = around.reshape(len(values), -1).T
    around[~within(problem.excess(around, problem.constraints))] = np.inf
    return around


def _moved(centres: Genomes, moves: NDArray[np.intp]) -> Genomes:
    """Genomes (P, G) after `moves` (P,), which index the rows of `_values_around`."""
    n_genes = centres.shape[1]
    steps = np.zeros((len(centres), n_genes + 1), dtype=centres.dtype)
    rows = np.arange(len(centres))
    up, down = np.divmod(moves, n_genes + 1)
    steps[rows, up] += 1
    steps[rows, down] -= 1
    return centres + steps[:, :n_genes]
