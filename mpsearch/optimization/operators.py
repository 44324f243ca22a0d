"""Crossover and mutation of genes whose choices are ordered, as pymoo takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem

from mpsearch.optimization.problem import BitProblem, Genomes


class Genes(Problem):  # type: ignore[misc]
    """What pymoo needs to know of the problem; values are set from outside."""

    def __init__(self, problem: BitProblem) -> None:
        super().__init__(
            n_var=len(problem.genes),
            n_obj=len(problem.objectives),
            n_ieq_constr=len(problem.constraints),
            xl=0,
            xu=problem.sizes - 1,
            vtype=int,
        )


class UniformCrossover(Crossover):  # type: ignore[misc]
    """Each gene comes from one of two parents; half of the matings swap a run of neighbouring genes instead."""

    def __init__(self) -> None:
        super().__init__(2, 2, prob=0.9)

    def _do(self, _: Problem, parents: Genomes, *, random_state: np.random.Generator, **__: Any) -> Genomes:
        n_matings, n_genes = parents.shape[1:]
        swap = random_state.random((n_matings, n_genes)) < 0.5
        ends = np.sort(random_state.integers(0, n_genes + 1, (n_matings, 2)), axis=1)
        place = np.arange(n_genes)
        runs = (ends[:, :1] <= place) & (place < ends[:, 1:])
        swap = np.where(random_state.random((n_matings, 1)) < 0.5, swap, runs)
        return np.where(swap, parents[::-1], parents)


class StepMutation(Mutation):  # type: ignore[misc]
    """Choices are ordered: genes step by one; in half of the children one gene steps up while another steps down."""

    def __init__(self) -> None:
        super().__init__(prob=1.0)

    def _do(self, problem: Problem, genomes: Genomes, *, random_state: np.random.Generator, **__: Any) -> Genomes:
        shape = genomes.shape
        rate = 1.0 / shape[1]
        step = np.where(random_state.random(shape) < rate, random_state.choice([-1, 1], shape), 0)
        exchange = np.flatnonzero(random_state.random(shape[0]) < 0.5)
        up, down = random_state.integers(0, shape[1], (2, len(exchange)))
        step[exchange, up] += 1
        step[exchange, down] -= 1
        jump = random_state.random(shape) < 0.1 * rate
        anywhere = np.floor(random_state.random(shape) * (problem.xu + 1))
        return np.where(jump, anywhere, np.clip(genomes + step, 0, problem.xu)).astype(genomes.dtype)
