"""The bit assignment as an integer problem: genes, allowed choices, objectives, budgets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError
from hwmodel.precision import BitConfig, Precision
from mpsearch.optimization.front import LOSS
from mpsearch.optimization.quadratic import QuadraticTables

Genomes = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class BitProblem:
    """Choose one allowed precision for each of G genes; made by `build_problem`.

    A genome (G,) holds for each gene the index of a choice in `choices[g]`, which lists precision indices in ascending
    order. Quantities per gene and choice stand flat, N = sum of the number of choices, gene by gene; `start` (G,) says
    where a gene begins. `linear` (N,) and `pair` (N, N) are the loss in nats, `costs` (K, N) with `fixed` (K,) the
    additive costs named in `cost_names`, in the units of their names. Everything is minimised.
    """

    layers: tuple[str, ...]
    precisions: tuple[Precision, ...]
    genes: tuple[tuple[int, ...], ...]
    choices: tuple[tuple[int, ...], ...]
    linear: NDArray[np.float64]
    pair: NDArray[np.float64]
    cost_names: tuple[str, ...]
    costs: NDArray[np.float64]
    fixed: NDArray[np.float64]
    objectives: tuple[str, ...]
    budgets: tuple[tuple[str, float], ...]
    tables: QuadraticTables
    fingerprint: str

    @property
    def sizes(self) -> NDArray[np.intp]:
        """Choices per gene (G,)."""
        return np.array([len(choice) for choice in self.choices], dtype=np.intp)

    @property
    def start(self) -> NDArray[np.intp]:
        """Flat index of every gene's first choice (G,)."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.intp)

    @property
    def owner(self) -> NDArray[np.intp]:
        """Gene of every flat index (N,)."""
        return np.repeat(np.arange(len(self.genes)), self.sizes)

    @property
    def constraints(self) -> tuple[str, ...]:
        """The budgeted costs that are no objectives: every point of a front meets these."""
        return tuple(name for name, _ in self.budgets if name not in self.objectives)

    def values(self, genomes: Genomes) -> NDArray[np.float64]:
        """Loss and all costs (P, 1 + K) of genomes (P, G), in the order of `("loss", *cost_names)`."""
        return np.asarray((self.tables(genomes) + np.append(0.0, self.fixed)[:, None]).T)

    def pick(self, values: NDArray[np.float64], names: Iterable[str]) -> NDArray[np.float64]:
        """The named columns (P, M) of `values`."""
        order = (LOSS, *self.cost_names)
        return values[:, [order.index(name) for name in names]]

    def evaluate(self, genomes: Genomes) -> NDArray[np.float64]:
        """Objectives (P, M) of genomes (P, G)."""
        return self.pick(self.values(genomes), self.objectives)

    def excess(self, values: NDArray[np.float64], names: Iterable[str] | None = None) -> NDArray[np.float64]:
        """How far `values` (P, 1 + K) lie above each budget, relative to it (P, B): at most 0 where it is met.

        `names` restricts the budgets that are looked at.
        """
        limits = [(name, limit) for name, limit in self.budgets if names is None or name in names]
        bounds = np.array([limit for _, limit in limits])
        return np.asarray(self.pick(values, [name for name, _ in limits]) / bounds - 1)

    def feasible(self, genomes: Genomes) -> NDArray[np.bool_]:
        """Which genomes (P,) meet every budget."""
        return within(self.excess(self.values(genomes)))

    def layer_choices(self, genomes: Genomes) -> NDArray[np.int16]:
        """Precision index of every layer (P, L) for genomes (P, G)."""
        choices = np.empty((len(genomes), len(self.layers)), dtype=np.int16)
        for gene, (members, allowed) in enumerate(zip(self.genes, self.choices, strict=True)):
            choices[:, list(members)] = np.array(allowed, dtype=np.int16)[genomes[:, gene]][:, None]
        return choices

    def genomes(self, choices: NDArray[np.integer]) -> Genomes:
        """The inverse of `layer_choices`. Raises InputError for choices that are forbidden here or break a tie."""
        genomes = np.full((len(choices), len(self.genes)), -1, dtype=np.int16)
        for gene, (members, allowed) in enumerate(zip(self.genes, self.choices, strict=True)):
            for position, choice in enumerate(allowed):
                genomes[(choices[:, list(members)] == choice).all(axis=1), gene] = position
        if (genomes < 0).any():
            gene = int(np.argwhere(genomes < 0)[0, 1])
            raise InputError(
                f"layer {self.layers[self.genes[gene][0]]!r}: this precision is not allowed here; "
                f"use one of {', '.join(str(self.precisions[c]) for c in self.choices[gene])}"
            )
        return genomes

    def config(self, genome: Genomes) -> BitConfig:
        """The bit assignment of one genome (G,)."""
        return BitConfig(self.layers, tuple(self.precisions[c] for c in self.layer_choices(genome[None])[0]))

    def flat(self, genome: Genomes) -> NDArray[np.intp]:
        """Flat indices (G,) of one genome's choices."""
        return self.start + genome


def within(excess: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows (P,) of `BitProblem.excess` meet every budget; sums of floats may miss one by a rounding error."""
    return np.asarray((excess <= 1e-12).all(axis=1))


def smallest(problem: BitProblem, cost: str) -> float:
    """The smallest value that `cost` can take, whatever the budgets."""
    row = problem.cost_names.index(cost)
    return float(np.minimum.reduceat(problem.costs[row], problem.start).sum() + problem.fixed[row])


def cheapest(problem: BitProblem, cost: str) -> Genomes:
    """The genome (G,) that has the smallest value of `cost`; of equal choices, the highest precision."""
    row = problem.costs[problem.cost_names.index(cost)]
    genome = np.empty(len(problem.genes), dtype=np.int16)
    for gene, (start, size) in enumerate(zip(problem.start, problem.sizes, strict=True)):
        genome[gene] = size - 1 - row[start : start + size][::-1].argmin()
    return genome
