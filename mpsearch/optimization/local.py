"""Local search: best moves of one or two genes within the budgets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpsearch.optimization.problem import BitProblem, Genomes

_WIDE = 800  # above this many choices in all, pairs of moves are restricted to neighbouring precisions


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
