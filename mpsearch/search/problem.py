"""The bit assignment as an integer problem: genes, allowed choices, objectives, budgets."""

from __future__ import annotations

import ctypes
import difflib
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, vstack

from hwmodel.cost import CostTable
from hwmodel.errors import BudgetError, InputError
from hwmodel.layer import LayerTable
from hwmodel.precision import BitConfig, Precision
from mpsearch.request.budgets import COSTS
from mpsearch.search.quadratic import QuadraticTables
from mpsearch.sensitivity.table import SensitivityTable

Genomes = NDArray[np.int16]

LOSS = "loss"


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

    def with_budgets(self, budgets: Mapping[str, float]) -> BitProblem:
        """The same problem under other budgets. Raises BudgetError where they cannot be met."""
        changed = replace(self, budgets=_checked_budgets(budgets, self.cost_names))
        _require_reachable(changed)
        return changed


def within(excess: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows (P,) of `BitProblem.excess` meet every budget; sums of floats may miss one by a rounding error."""
    return np.asarray((excess <= 1e-12).all(axis=1))


def build_problem(
    table: LayerTable,
    costs: CostTable,
    sensitivity: SensitivityTable,
    allowed: Mapping[str, Collection[Precision]] | None = None,
    budgets: Mapping[str, float] | None = None,
    objectives: Sequence[str] = (LOSS, "size_bytes"),
) -> BitProblem:
    """The search problem of a network.

    `allowed` restricts layers by name (one precision fixes a layer); layers of one tie group share the intersection.
    `budgets` are upper bounds by cost name (`size_bytes`, `mean_bits`, `bops`, `latency_s`, `energy_j`), in the units
    of the names. `objectives` are two or three of `loss` and the cost names.

    Raises InputError for unknown layers, precisions or names and for tables of different networks; BudgetError, saying
    what can be reached, where no choice meets the budgets.
    """
    _require_same(table, costs, sensitivity)
    choices = _gene_choices(table, sensitivity.precisions, allowed or {})
    linear, pair = _gene_loss(table, sensitivity, choices)
    per_layer = layer_costs(table, costs, sensitivity.precisions)
    cost_names = tuple(per_layer)
    flat_costs = np.array([_gene_sums(table, per_layer[name], choices) for name in cost_names])
    fixed = np.array([float(costs.fixed_bytes) if name == "size_bytes" else 0.0 for name in cost_names])
    for name in objectives:
        if name in COSTS and name not in cost_names:
            raise InputError(f"the objective {name} needs a device; give one with --device")
        _require_known(name, (LOSS, *cost_names), "objective")
    if objectives[0] != LOSS or not 2 <= len(set(objectives)) == len(objectives) <= 3:
        raise InputError(f"objectives must be loss first and then one or two costs, got {', '.join(objectives)}")
    sizes = np.array([len(choice) for choice in choices], dtype=np.intp)
    problem = BitProblem(
        layers=table.names,
        precisions=sensitivity.precisions,
        genes=table.genes,
        choices=choices,
        linear=linear,
        pair=pair,
        cost_names=cost_names,
        costs=flat_costs,
        fixed=fixed,
        objectives=tuple(objectives),
        budgets=_checked_budgets(budgets or {}, cost_names),
        tables=QuadraticTables.build(sizes, np.vstack([linear, flat_costs]), pair),
        fingerprint=sensitivity.fingerprint,
    )
    _require_reachable(problem)
    return problem


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
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        flush(None)  # what C has buffered
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


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


def _require_known(name: str, known: Collection[str], what: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, list(known), 3, 0.4) or list(known)[:6]
        raise InputError(f"{what} {name!r} is not known here; did you mean {', '.join(near)}?")


def _require_same(table: LayerTable, costs: CostTable, sensitivity: SensitivityTable) -> None:
    for what, layers in (("cost table", costs.layers), ("sensitivity table", sensitivity.layers)):
        if layers != table.names:
            odd = sorted(set(layers) ^ set(table.names))[:3]
            raise InputError(
                f"the {what} is of another network: {len(layers)} layers for {len(table)}"
                f"{', differing in ' + ', '.join(odd) if odd else ', in another order'}; compute it again"
            )
    missing = [str(precision) for precision in sensitivity.precisions if precision not in costs.precisions]
    if missing:
        raise InputError(f"the cost table has no {', '.join(missing)}; compute it for the candidates of the cache")


def _gene_choices(
    table: LayerTable, precisions: tuple[Precision, ...], allowed: Mapping[str, Collection[Precision]]
) -> tuple[tuple[int, ...], ...]:
    for name, wanted in allowed.items():
        _require_known(name, table.names, "layer")
        for precision in wanted:
            if precision not in precisions:
                known = ", ".join(map(str, precisions))
                raise InputError(f"layer {name!r}: {precision} is not among the candidates {known}; add it there")
    choices = []
    for members in table.genes:
        names = [table.names[index] for index in members]
        usable = tuple(
            c for c, p in enumerate(precisions) if all(p in allowed[name] for name in names if name in allowed)
        )
        if not usable:
            raise InputError(
                f"no precision is left for {', '.join(names)}; tied layers share the precisions that all allow"
            )
        choices.append(usable)
    return tuple(choices)


def _gene_loss(
    table: LayerTable, sensitivity: SensitivityTable, choices: tuple[tuple[int, ...], ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Loss of genes: what tied layers cost one another at a shared choice is linear in that choice."""
    n_choices = len(sensitivity.precisions)
    rows, columns = [], []
    index = 0
    for members, allowed in zip(table.genes, choices, strict=True):
        for choice in allowed:
            rows += [index] * len(members)
            columns += [layer * n_choices + choice for layer in members]
            index += 1
    gather = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(index, sensitivity.intra.size))
    pair = np.asarray(gather @ (gather @ sensitivity.inter).T)
    linear = gather @ sensitivity.intra.ravel() + pair.diagonal()
    start = 0
    for allowed in choices:
        pair[start : start + len(allowed), start : start + len(allowed)] = 0
        start += len(allowed)
    return linear, (pair + pair.T) / 2


def layer_costs(
    table: LayerTable, costs: CostTable, precisions: tuple[Precision, ...]
) -> dict[str, NDArray[np.float64]]:
    """Additive costs (L, C) by the names that budgets and objectives have, at the columns of `precisions`."""
    columns = [costs.precisions.index(precision) for precision in precisions]
    arrays = {
        "size_bytes": costs.weight_bytes,
        "mean_bits": costs.code_bits / max(table.n_weights, 1),
        "bops": costs.bops,
        "latency_s": costs.latency_s,
        "energy_j": costs.energy_j,
    }
    return {name: array[:, columns].astype(np.float64) for name, array in arrays.items() if array is not None}


def _gene_sums(
    table: LayerTable, per_layer: NDArray[np.float64], choices: tuple[tuple[int, ...], ...]
) -> NDArray[np.float64]:
    sums = [
        per_layer[np.ix_(members, allowed)].sum(axis=0) for members, allowed in zip(table.genes, choices, strict=True)
    ]
    return np.concatenate(sums)


def _checked_budgets(budgets: Mapping[str, float], cost_names: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    for name, limit in budgets.items():
        if name in COSTS and name not in cost_names:
            raise InputError(f"a budget of {name} needs a device; give one with --device")
        _require_known(name, cost_names, "budget")
        if not 0 < limit < float("inf"):
            raise InputError(f"the budget of {name} must be a positive number, got {limit}")
    return tuple((name, float(budgets[name])) for name in cost_names if name in budgets)


def _require_reachable(problem: BitProblem) -> None:
    for name, limit in problem.budgets:
        least = smallest(problem, name)
        if least > limit * (1 + 1e-12):
            raise BudgetError(
                f"the {COSTS[name].title} budget is {COSTS[name].text(limit)}, but with these candidates the least "
                f"that can be reached is {COSTS[name].text(least)}; raise the budget or allow fewer bits"
            )
    if len(problem.budgets) > 1:
        (name, limit), *others = problem.budgets
        row = problem.cost_names.index(name)
        inside = " and ".join(f"{COSTS[other].title} of {COSTS[other].text(most)}" for other, most in others)
        try:
            shares = relaxed_additive(problem, problem.costs[row], others)
        except BudgetError:
            raise BudgetError(f"the budgets exclude each other: {inside}; raise one of them") from None
        least = float(problem.costs[row] @ shares + problem.fixed[row])
        if least > limit * (1 + 1e-6):
            raise BudgetError(
                f"the budgets cannot be met together: {COSTS[name].title} may be {COSTS[name].text(limit)}, but within "
                f"{inside} it is at least {COSTS[name].text(least)}; raise one of them"
            )
