"""Explanations add up, and what the next bit brings is what it brings."""

from __future__ import annotations

import json

import numpy as np
import pytest
from synthetic import network

from hwmodel import BitConfig, InputError, Precision
from mpsearch.request.rules import tied
from mpsearch.show.why import explain


def explained(ties: list[tuple[str, ...]] | None = None):
    table, costs, sensitivity = network(9)
    table = tied(table, ties or [])
    choice = np.array([4, 1, 2, 0, 3, 1, 4, 2, 1])
    config = BitConfig(table.names, tuple(sensitivity.precisions[c] for c in choice))
    allowed = dict.fromkeys(table.names, sensitivity.precisions) | {"l2": (Precision(4), Precision(8))}
    return explain("mine", config, table, costs, sensitivity, allowed, 4), choice, costs, sensitivity


def test_layers_add_up_to_the_whole() -> None:
    found, choice, costs, sensitivity = explained()
    assert sum(layer.alone + layer.together for layer in found.layers) == pytest.approx(sensitivity.loss(choice))
    assert found.loss == sensitivity.loss(choice)
    assert sum(layer.size_bytes for layer in found.layers) + costs.fixed_bytes == found.size_bytes
    json.dumps(found.to_json())


def test_a_step_is_the_difference_of_two_whole_predictions() -> None:
    found, choice, costs, sensitivity = explained()
    assert found.layers[0].up is None  # 8 bits already
    assert found.layers[3].down is None
    up = found.layers[2].up
    assert up is not None
    assert up.precision == Precision(8)  # 6 is not allowed here
    moved = choice.copy()
    moved[2] = 4
    assert up.loss == pytest.approx(sensitivity.loss(moved) - sensitivity.loss(choice))
    assert up.size_bytes == costs.weight_bytes[2, 4] - costs.weight_bytes[2, 2]


def test_tied_layers_step_together() -> None:
    found, choice, costs, sensitivity = explained([("l1", "l5", "l8")])
    moved = choice.copy()
    moved[[1, 5, 8]] = 2
    for layer in (1, 5, 8):
        up = found.layers[layer].up
        assert up is not None
        assert up.loss == pytest.approx(sensitivity.loss(moved) - sensitivity.loss(choice))
        assert up.size_bytes == sum(costs.weight_bytes[m, 2] - costs.weight_bytes[m, 1] for m in (1, 5, 8))


def test_the_strongest_interactions_are_those() -> None:
    found, choice, _, sensitivity = explained()
    flat = np.arange(9) * 5 + choice
    terms = 2 * np.triu(sensitivity.inter[np.ix_(flat, flat)], 1)
    strongest = np.sort(np.abs(terms).ravel())[::-1][:4]
    np.testing.assert_allclose([abs(pair.loss) for pair in found.interactions], strongest)
    pair = found.interactions[0]
    assert terms[int(pair.first[1:]), int(pair.second[1:])] == pair.loss


def test_an_unmeasured_precision_is_named() -> None:
    table, costs, sensitivity = network(2)
    config = BitConfig.uniform(table.names, Precision(5))
    with pytest.raises(InputError, match="l0 has W5A32, which was not measured"):
        explain("x", config, table, costs, sensitivity, dict.fromkeys(table.names, ()))
