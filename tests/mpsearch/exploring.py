"""A synthetic run for tests of the page: a front of some hundred configurations, one finished and one beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import synthetic

from mpsearch.optimization.baselines import answers
from mpsearch.optimization.build import build_problem
from mpsearch.optimization.nsga2 import search
from mpsearch.optimization.settings import SearchSettings
from mpsearch.show.explorer import ExploredRun

LAYERS = 12
QUICK = SearchSettings(population=24, generations=8, neighbours=20_000)
FIGURES = [
    {"name": "top1", "unit": "%", "higher_is_better": True, "labelled": True},
    {"name": "kl", "unit": "nats", "higher_is_better": False, "labelled": False},
]


def record(config: Mapping[str, str], size: int) -> dict[str, Any]:
    """What a run folder keeps of a finished configuration."""
    metrics = {
        "float": {"top1": 77.0, "kl": 0.0},
        "plain": {"top1": 12.0, "kl": 1.5},
        "finished": {"top1": 75.0, "kl": 0.07},
    }
    known = {"size_bytes": size, "metrics": metrics, "judged_by": FIGURES, "validation_samples": 1000}
    return {"config": dict(config), **known}


def explored_run(
    *objectives: str,
    name: str = "run",
    seed: int = 0,
    names: Mapping[int, str] | None = None,
    finished: Sequence[tuple[str, dict[str, Any]]] | None = None,
) -> ExploredRun:
    """A searched network of layers l0, l1, … unless `names` say otherwise, within a budget of half the largest."""
    table, costs, sensitivity = synthetic.network(LAYERS, seed=seed)
    called = tuple((names or {}).get(i, layer) for i, layer in enumerate(table.names))
    layers = tuple(replace(layer, name=new, tie=new) for layer, new in zip(table, called, strict=True))
    table, costs, sensitivity = (
        replace(table, layers=layers),
        replace(costs, layers=called),
        replace(sensitivity, layers=called),
    )
    budget = costs.fixed_bytes + int(costs.weight_bytes[:, -1].sum() // 2)
    problem = build_problem(table, costs, sensitivity, {}, {"size_bytes": budget}, ("loss", *objectives))
    front = search(problem, QUICK)
    if finished is None:
        best, other = front.config(front.best()), front.config(0).to_json()
        other[called[0]], other[called[1]] = "W8A32", "W2A32"
        finished = [("budget", record(best.to_json(), 1)), ("mine", record(other, 2))]
    beside = answers(problem)
    return ExploredRun(name, f"finish {name} POINT", table, front, costs, sensitivity.intra, None, finished, beside)
