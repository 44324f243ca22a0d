"""Layers that no gradient reaches: found in the graph, and measured one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwmodel import BitConfig, Precision
from mpsearch.sensitivity.cache import load_scores, save_cache
from mpsearch.sensitivity.measure import measure, split
from mpsearch.sensitivity.scores import Scores
from recon.graph.gradients import without_gradient
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.likelihood.likelihood import CLASSIFIER
from recon.quantizers.quantized import plainly_rounded, quantized
from recon.reconstruct import reconstruct
from recon.settings import Settings

W2, W4, W4A8 = Precision(2), Precision(4), Precision(4, 8)


@torch.library.custom_op("mpsearch_tests::squashed", mutates_args=())
def squashed(x: Tensor) -> Tensor:
    """An operation of a library, without a backward."""
    return torch.tanh(x)


@squashed.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Steep(torch.autograd.Function):
    """Straight through in training; torch.export keeps the forward alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(4 * x) / 4

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


def straight_through(x: Tensor) -> Tensor:
    """Straight through by hand."""
    return x + (torch.round(4 * x) / 4 - x).detach()


def looked_up(x: Tensor) -> Tensor:
    """The nearest of some numbers, by its index."""
    codes = torch.linspace(-2, 2, 9)
    return codes[(x[..., None] - codes).abs().argmin(-1)]


class Middle(nn.Module):
    """Two layers in front of `middle`, two behind it."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)
        self.fc, self.middle = nn.Linear(8, 5), middle

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self.b(self.a(x).relu()))
        return 10 * self.fc(self.c(y).relu().mean((2, 3)))


BLOCKING: dict[str, Callable[[Tensor], Tensor]] = {
    "round": torch.round,
    "sign": torch.sign,
    "autograd.Function": Steep.apply,  # type: ignore[dict-item]
    "straight through": straight_through,
    "no backward": lambda x: squashed(x),
    "half a derivative": lambda x: torch.igamma(x.exp(), x.exp()),
    "comparison": lambda x: (x > 0).float(),
    "index": looked_up,
    "integers": lambda x: (4 * x).int().float() / 4,
}
PASSING: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "mask": lambda x: x * (x > 0),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "detached": lambda x: x.detach(),
    "clamp": lambda x: x.clamp(-1, 1),
}


def captured(middle: Callable[[Tensor], Tensor]) -> tuple[Network, Samples]:
    x = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return capture(Middle(middle), x[:2]), Samples.of(x)


@pytest.mark.parametrize("name", BLOCKING)
def test_what_a_gradient_does_not_show_is_found(name: str) -> None:
    assert without_gradient(captured(BLOCKING[name])[0].module) == {"a", "b"}


@pytest.mark.parametrize("name", PASSING)
def test_masks_and_bends_have_gradients(name: str) -> None:
    assert not without_gradient(captured(PASSING[name])[0].module)


def divergence_of(network: Network, samples: Samples, layer: str, change: tuple[Tensor, Tensor]) -> float:
    """What rounding one layer alone costs, with the network as it is called."""
    with torch.no_grad():
        truth = network.outputs_of(*samples.leaves)
        twin = network.copy()
        twin.layer(layer).weight.data += change[0]
        twin.layer(layer).bias.data += change[1]
        return float(CLASSIFIER.divergence(truth, twin.outputs_of(*samples.leaves)).mean())


@pytest.mark.parametrize("name", ["sign", "no backward", "index"])
def test_what_is_predicted_alone_is_what_is_measured(name: str) -> None:
    network, samples = captured(BLOCKING[name])
    scores = measure(network, samples, (W2, W4), 0, "key")
    table = scores.table((W2, W4), 0, "print")
    assert scores.alone == ("a", "b")
    judging = split(samples)[1]
    for at, layer in enumerate(("a", "b")):
        for column, bits in enumerate((W2, W4)):
            rounded: Any = scores.rounded[bits][layer]
            weight = network.layer(layer).weight
            change = rounded.weight.dequantize() - weight, rounded.bias
            expected = divergence_of(network, judging, layer, change)
            assert table.intra[at, column] == pytest.approx(expected, rel=0.01, abs=1e-7)
    assert table.intra[0, 0] > table.intra[0, 1] > 0


def test_layers_alone_have_no_interactions() -> None:
    rng = np.random.default_rng(0)
    score = (rng.normal(size=(64, 1, 1)) + 0.1 * rng.normal(size=(64, 3, 1))).astype(np.float32)  # alike, all three
    scores = Scores("key", ("a", "b", "c"), ("",) * 64, {W4: {}}, score, score**2, ("b",))
    table = scores.table((W4,), 0, "print")
    assert table.inter[0, 2] > 0.9 * np.sqrt(table.intra[0, 0] * table.intra[2, 0])
    assert not table.inter[1].any()
    assert table.intra[1, 0] == pytest.approx(np.log(np.cosh(score[:, 1].astype(float))).mean(), rel=0.1)


def test_the_other_layers_are_scored_as_ever() -> None:
    """What is behind the step does not mind that something in front of it is measured."""
    network, samples = captured(torch.sign)
    whole = measure(network, samples, (W2, W4), 0, "key")
    behind = [whole.layers.index(name) for name in ("c", "fc")]
    assert (whole.square[:, behind] > 0).any()
    assert not whole.square[:, [0, 1]].any()


def test_inputs_are_measured_too_and_the_cache_grows(tmp_path: Any) -> None:
    network, samples = captured(torch.sign)
    precisions = (W4, W4A8)
    fresh = measure(network, samples, precisions, 0, "key")
    assert (fresh.score[:, 0, fresh.terms.index(Precision(32, 8))] != 0).any()
    path = tmp_path / "cache.safetensors"
    first = measure(network, samples[:40], (W4,), 0, "key")
    save_cache(path, first.table((W4,), 0, "print"), first)
    assert load_scores(path, network).alone == ("a", "b")
    few = measure(network, samples[:40], precisions, 0, "key", load_scores(path, network))
    again = measure(network, samples[:40], precisions, 0, "key")
    np.testing.assert_array_equal(few.score, again.score)


@pytest.mark.parametrize("name", ["sign", "no backward", "comparison", "index"])
def test_it_is_reconstructed_no_worse_than_plainly_rounded(name: str) -> None:
    network, samples = captured(BLOCKING[name])
    config = BitConfig.uniform(network.table.names, W4)
    result = reconstruct(network, samples, config, Settings(steps=8))
    with torch.no_grad():
        truth = network.outputs_of(*samples.leaves)
        plain = quantized(network, plainly_rounded(network, samples.leaves, config)).outputs_of(*samples.leaves)
        ours = quantized(network, result.layers).outputs_of(*samples.leaves)
        nats = [float(CLASSIFIER.divergence(truth, z).mean()) for z in (ours, plain)]
    assert nats[0] < nats[1]
