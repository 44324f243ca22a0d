"""Answers to hold the search against: uniform, greedy, and exact where losses add up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.precision import BitConfig, Precision
from mpsearch.optimization.front import non_dominated
from mpsearch.optimization.milp import solve_additive
from mpsearch.optimization.problem import BitProblem, Genomes, within


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
