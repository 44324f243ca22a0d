"""Makes the search problem of a network from its tables, and refuses budgets that nothing meets."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from hwmodel.cost import CostTable, layer_costs
from hwmodel.errors import BudgetError, InputError
from hwmodel.layer import LayerTable
from hwmodel.precision import Precision
from mpsearch.optimization.front import LOSS
from mpsearch.optimization.milp import (
    relaxed_additive,
)
from mpsearch.optimization.problem import BitProblem, smallest
from mpsearch.optimization.quadratic import QuadraticTables
from mpsearch.request.budgets import COSTS
from mpsearch.sensitivity.table import SensitivityTable


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


def _require_known(name: str, known: Collection[str], what: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, list(known), 3, 0.4) or list(known)[:6]
        raise InputError(f"{what} {name!r} is not known here; did you mean {', '.join(near)}?")


def with_sensitivity(problem: BitProblem, table: LayerTable, sensitivity: SensitivityTable) -> BitProblem:
    """The same choices and costs of the layers of `table` with the loss that `sensitivity` predicts.

    Raises InputError where it is of other layers or precisions.
    """
    if (sensitivity.layers, sensitivity.precisions) != (problem.layers, problem.precisions):
        raise InputError("the sensitivity table is of other layers or candidates than the problem; measure it again")
    linear, pair = _gene_loss(table, sensitivity, problem.choices)
    tables = QuadraticTables.build(problem.sizes, np.vstack([linear, problem.costs]), pair)
    return replace(problem, linear=linear, pair=pair, tables=tables, fingerprint=sensitivity.fingerprint)


def with_budgets(problem: BitProblem, budgets: Mapping[str, float]) -> BitProblem:
    """The same problem under other budgets. Raises BudgetError where they cannot be met."""
    changed = replace(problem, budgets=_checked_budgets(budgets, problem.cost_names))
    _require_reachable(changed)
    return changed


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
