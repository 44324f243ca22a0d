"""A layer whose rounding changes nothing costs nothing, and may have the fewest bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwmodel import Precision
from mpsearch.sensitivity.measure import measure
from mpsearch.sensitivity.table import SensitivityTable
from recon.graph.network import capture
from recon.graph.samples import Samples

BITS = tuple(map(Precision, (2, 3, 4, 8)))
WITH_INPUTS = (Precision(2, 4), Precision(2, 8), Precision(8, 8))


class Branch(nn.Module):
    """A residual branch of two layers before a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.norm(self.two(self.one(x).relu()))
        z: Tensor = self.head(x.mean((2, 3)))
        return z


def zero_weights(net: Branch) -> None:
    net.two.weight.zero_()
    net.two.bias.zero_()  # type: ignore[union-attr]


def zero_norm(net: Branch) -> None:
    net.norm.weight.zero_()


def dead_relu(net: Branch) -> None:
    net.one.bias.fill_(-50)  # type: ignore[union-attr]


def on_the_grid(net: Branch) -> None:
    for layer in (net.one, net.two):  # every channel has all of -1, 0, 1, 2, an exact grid of 2 bits and more
        layer.weight.copy_((torch.arange(64) % 4 - 1.0).view(8, 8, 1, 1))


def saturated(net: Branch) -> None:
    net.head.weight.zero_()
    net.head.bias.copy_(torch.tensor([1e4, 0, 0, 0, 0]))


def table(net: Branch, precisions: tuple[Precision, ...]) -> SensitivityTable:
    network = capture(net.eval(), Samples.noise((3, 9, 9)), "branch")
    samples = Samples.of(torch.randn(48, 3, 9, 9, generator=torch.Generator().manual_seed(1)))
    return measure(network, samples, precisions, 0, "key").table(precisions, 0, "key")


CASES = [
    (zero_weights, ("one", "two")),
    (zero_norm, ("one", "two")),
    (dead_relu, ("one", "two")),  # what the latter reads is constant
    (saturated, ("stem", "one", "two", "head")),
]


@pytest.mark.parametrize(("change", "free"), CASES)
def test_it_costs_nothing(change: Callable[[Branch], None], free: tuple[str, ...]) -> None:
    net = Branch()
    with torch.no_grad():
        change(net)
    found = table(net, BITS)
    for layer, alone in zip(found.layers, found.intra, strict=True):
        assert (layer in free) == bool(np.all(alone == 0)), layer
    assert found.loss(np.zeros(4, int)) >= 0


@pytest.mark.parametrize(("change", "free"), CASES)
def test_with_quantized_inputs_its_weights_cost_nothing(
    change: Callable[[Branch], None], free: tuple[str, ...]
) -> None:
    net = Branch()
    with torch.no_grad():
        change(net)
    found = table(net, WITH_INPUTS)  # others may read what it reads: that costs
    for layer, (_, fewest, most) in zip(found.layers, found.intra, strict=True):
        if layer in free:
            assert fewest == pytest.approx(most, rel=1e-6), layer


def test_weights_on_the_grid_lose_next_to_nothing() -> None:
    net = Branch()
    with torch.no_grad():
        on_the_grid(net)
    found = table(net, BITS)
    alone = dict(zip(found.layers, found.intra, strict=True))
    for layer in ("one", "two"):
        assert alone[layer].max() < 1e-4 * alone["stem"][0]


def test_the_others_are_judged_as_if_it_were_not_there() -> None:
    """A dead branch changes nothing about the rest."""

    class Plain(nn.Module):
        def __init__(self, branch: Branch) -> None:
            super().__init__()
            self.stem, self.head = branch.stem, branch.head

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.head(self.stem(x).relu().mean((2, 3)))
            return z

    net = Branch()
    with torch.no_grad():
        zero_norm(net)
    samples = Samples.of(torch.randn(48, 3, 9, 9, generator=torch.Generator().manual_seed(1)))
    network = capture(Plain(net).eval(), Samples.noise((3, 9, 9)), "plain")
    without = measure(network, samples, BITS, 0, "key").table(BITS, 0, "key")
    found = table(net, BITS)
    alone = dict(zip(found.layers, found.intra, strict=True))
    for layer, expected in zip(without.layers, without.intra, strict=True):
        np.testing.assert_allclose(alone[layer], expected, rtol=0.02)
