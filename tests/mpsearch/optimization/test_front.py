"""The front record, and dominance by its definition."""

import numpy as np
import pytest
import torchvision

from hwmodel.errors import BudgetError, InputError
from hwmodel.precision import BitConfig, Precision
from mpsearch.optimization.front import ParetoFront, non_dominated
from mpsearch.show.columns import as_text
from mpsearch.show.tables import bit_rows
from recon.graph.network import capture
from recon.graph.samples import Samples


def front(n_points=50):
    size = np.linspace(1e5, 1e6, n_points)
    return ParetoFront(
        layers=("a", "b"),
        precisions=(Precision(2), Precision(4, 8), Precision(8)),
        names=("loss", "size_bytes"),
        choices=np.arange(2 * n_points, dtype=np.int16).reshape(n_points, 2) % 3,
        objectives=np.stack([1e5 / size**1.1 / 3, size], axis=1),
        budgets=(("size_bytes", 3e5),),
        evaluations=1000,
        hypervolume=(0.1, 0.2),
        seed=7,
        fingerprint="f",
    )


@pytest.mark.parametrize("n_objectives", [2, 3])
def test_non_dominated_is_the_definition(n_objectives):
    points = np.random.default_rng(0).integers(0, 12, (300, n_objectives)).astype(float)
    kept = non_dominated(points)
    expected = {tuple(p) for p in points if not ((points <= p).all(axis=1) & (points < p).any(axis=1)).any()}
    assert [tuple(p) for p in points[kept]] == sorted(expected, key=lambda p: (p[1], p[0]))


def test_best_is_the_least_loss_within_the_budget():
    found = front()
    best = found.best()
    assert found.objectives[best, 1] <= 3e5 < found.objectives[best + 1, 1]
    assert found.best({}) == len(found) - 1
    with pytest.raises(BudgetError, match="smallest"):
        found.best({"size_bytes": 10.0})
    with pytest.raises(InputError, match="no objective"):
        found.best({"latency_s": 1.0})


def test_the_knee_lies_farthest_below_the_chord():
    found = front()
    low, high = found.objectives.min(axis=0), found.objectives.max(axis=0)
    scaled = (found.objectives - low) / (high - low)
    distance = (1 - scaled.sum(axis=1)) / np.sqrt(2)
    assert found.knee() == distance.argmax()


def test_thinning_keeps_what_matters():
    found = front()
    for count in (4, 9, 80):
        kept = found.thin(count)
        assert {0, len(found) - 1, found.knee(), found.best()} <= set(kept)
        assert kept == sorted(set(kept))
        assert len(kept) <= count
    assert len(found.thin(9)) == 9
    assert front(1).thin(5) == [0]


def test_json_round_trip_is_canonical():
    found = front()
    text = found.to_json()
    again = ParetoFront.from_json(text)
    assert again.to_json() == text
    np.testing.assert_array_equal(again.objectives, found.objectives)
    np.testing.assert_array_equal(again.choices, found.choices)
    assert again.config(3) == found.config(3)


@pytest.mark.parametrize("text", ["", "{}", "[]", front().to_json()[:200], front().to_json().replace("W4A8", "X")])
def test_damaged_text_is_refused(text):
    with pytest.raises(InputError):
        ParetoFront.from_json(text)


def test_the_bits_of_a_dozen_far_points_fit_a_line():
    table = capture(torchvision.models.mobilenet_v2(), Samples.noise((3, 32, 32))).table
    config = BitConfig.uniform(table.names, Precision(4, 8))
    text = as_text(bit_rows(table, [(str(number), config) for number in range(1000, 1014)]))
    assert text.split("\n")[0].split() == ["layer", "weights", *map(str, range(1000, 1014))]
    assert "…" not in text
