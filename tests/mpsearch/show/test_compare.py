"""Fronts over each other: the least loss within each cost, by definition."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import problem

from hwmodel import InputError
from mpsearch.optimization.front import ParetoFront
from mpsearch.optimization.nsga2 import search
from mpsearch.optimization.settings import SearchSettings
from mpsearch.show.compare import compare

QUICK = SearchSettings(population=24, generations=8, neighbours=50_000)


def run(front: ParetoFront, name: str = "run"):
    return name, "net", front, []


@pytest.fixture(scope="module")
def front() -> ParetoFront:
    return search(problem(8), QUICK)


def test_the_least_loss_within_each_cost(front: ParetoFront) -> None:
    wide = search(problem(8, objectives=("loss", "size_bytes", "bops")), QUICK)
    found = compare([run(front, "two"), run(wide, "three")])
    assert found.cost == "size_bytes"
    assert len(found.at) >= 5
    for limit, row in zip(found.at, found.losses, strict=True):
        for one, loss in zip((front, wide), row, strict=True):
            inside = one.objectives[one.objectives[:, 1] <= limit, 0]
            assert loss == (inside.min() if inside.size else None)
    assert (np.diff(found.fronts[1].cost) > 0).all()
    assert (np.diff(found.fronts[1].loss) < 0).all()


def test_a_better_front_has_more_hypervolume(front: ParetoFront) -> None:
    few = search(problem(8), SearchSettings(population=8, generations=1, neighbours=0))
    better, worse = compare([run(front), run(few)]).fronts
    assert 0 < worse.hypervolume < better.hypervolume <= 1


def test_finished_points_are_found_by_their_bits(front: ParetoFront) -> None:
    index = len(front) // 2
    entry = {
        "config": front.config(index).to_json(),
        "metrics": {"finished": {"kl": 0.1}},
        "judged_by": [{"name": "kl", "unit": "nats", "higher_is_better": False, "labelled": False}],
    }
    found = compare([("a", "net", front, [("mine", entry)]), run(front)])
    assert [(point.name, point.index, point.kl) for point in found.fronts[0].measured] == [("mine", index, 0.1)]
    assert found.fronts[1].measured == ()
    assert found.same_cache


def test_fronts_without_a_shared_cost(front: ParetoFront) -> None:
    other = search(problem(8, objectives=("loss", "bops")), QUICK)
    with pytest.raises(InputError, match="share no cost"):
        compare([run(front), run(other)])
