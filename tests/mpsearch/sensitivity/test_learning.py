"""What more samples will leave of a rounding's loss, against values by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from mpsearch.sensitivity.measure import learning_curve
from recon.graph.network import capture


def test_only_what_sees_few_vectors_has_much_to_learn() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 400),
        nn.ReLU(), nn.Linear(400, 10),
    )  # fmt: skip
    table = capture(model.eval(), torch.randn(2, 3, 16, 16)).table
    few, many = learning_curve(table, 20), learning_curve(table, 2000)
    assert few == pytest.approx([1.0, 0.98, 2 / 3], abs=3e-3)  # K / n: 27 / 5,120, 8 / 20, 400 / 20
    assert many == pytest.approx([1.0, 1.0, 0.99], abs=1e-3)
    assert np.all(few <= many)


def test_a_table_of_vectors_learns_nothing() -> None:
    model = nn.Sequential(nn.Embedding(50, 6), nn.Linear(6, 4))
    network = capture(model.eval(), torch.randint(50, (2, 5)))
    assert learning_curve(network.table, 1)[0] == 1
