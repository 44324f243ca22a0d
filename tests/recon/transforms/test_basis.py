"""Linear bottlenecks in another basis: which there are, that nothing else changes, and that rounding costs less."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from captured import of_images, unit_by_unit
from families import SIDE, small
from torch import Tensor, nn

from hwmodel import BitConfig, Precision
from recon.graph.network import Network
from recon.quantizers.learned import bias_of
from recon.quantizers.quantized import plainly_rounded, quantized
from recon.reconstruct import reconstruct
from recon.settings import Settings
from recon.transforms.basis import balanced, linear_streams

CHANNELS = 8
How = Callable[["Layers", Tensor], Tensor]


class Layers(nn.Module):
    """A nonlinear layer, then what `how` makes of its output with five more."""

    def __init__(self, how: How) -> None:
        super().__init__()
        self.first, self.drop, self.how = nn.Conv2d(3, CHANNELS, 3), nn.Dropout(0.5), how
        self.a, self.b = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.c, self.d = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(2))
        self.grouped = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, F.relu(self.first(x)))


def residual(m: Layers, x: Tensor) -> Tensor:
    z = m.a(x)
    return m.d(z + m.c(F.relu(m.b(z))))


STREAMS: dict[str, How] = {"ad": lambda m, x: m.d(m.drop(m.a(x))), "acbd": residual}
NONE: dict[str, How] = {
    "activated": lambda m, x: m.d(F.relu(m.a(x))),
    "pooled as well": lambda m, x: m.d(z := m.a(x)) + F.avg_pool2d(z, 3, 1, 1),
    "scaled": lambda m, x: m.d(torch.add(m.a(x), m.b(x), alpha=2)),
    "a constant added": lambda m, x: m.d(m.a(x) + 1.0),
    "an activation added": lambda m, x: m.d(m.a(x) + x),
    "multiplied": lambda m, x: m.d(m.a(x) * m.b(x)),
    "read by groups": lambda m, x: m.d(z := m.a(x)) + F.relu(m.grouped(z)),
    "read by a layer called twice": lambda m, x: m.d(F.relu(m.d(m.a(x)))),
    "the network's output": lambda m, x: m.a(x),
}


def network(how: How) -> Network:
    torch.manual_seed(0)
    return of_images(Layers(how), (3, 12, 12))


@pytest.mark.parametrize("how", [*STREAMS.values(), *NONE.values()], ids=[*STREAMS, *NONE])
@torch.no_grad()
def test_streams_are_found_and_nothing_is_computed_that_was_not_before(how: How) -> None:
    net = network(how)
    before = {name: tensor.clone() for name, tensor in net.model.state_dict().items()}
    found = {"".join(sorted(stream.writers) + sorted(stream.readers)) for stream in linear_streams(net)}
    assert found == {name for name, known in STREAMS.items() if known is how}
    other, x = balanced(net), torch.randn(4, 3, 12, 12)
    assert (other is net) == (not found)
    assert torch.allclose(other.model(x), net.model(x), atol=1e-5)
    assert not found or not torch.allclose(other.layer("a").weight, net.layer("a").weight, atol=1e-2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.model.state_dict().items())


FAMILIES = {
    "mobilenet_v2": [8, 16],
    "mobilenet_v3": [16, 24, 40],
    "efficientnet": [24, 32],
    "resnet": [],
    "convnext": [],
    "vit": [],
    "pixel shuffle": [],
}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_families(name: str) -> None:
    _, net = small(name)
    x = torch.randn(2, 3, SIDE, SIDE)
    assert [len(net.layer(stream.writers[0]).weight) for stream in linear_streams(net)] == FAMILIES[name]
    expected = net.model(x)
    assert (unit_by_unit(balanced(net), x)[""] - expected).abs().max() <= 1e-4 * expected.abs().max()


def traces(net: Network) -> tuple[float, float]:
    """‖W‖² of the weight that writes the stream `ad`, and of the one that reads it."""
    one, other = (float(net.layer(name).weight.square().sum()) for name in "ad")
    return one, other


def test_no_other_basis_makes_both_sides_smaller() -> None:
    net = network(STREAMS["ad"])
    scale = torch.logspace(-0.7, 0.7, CHANNELS)
    net.layer("a").weight.data *= scale.view(-1, 1, 1, 1)
    net.layer("d").weight.data /= scale.view(-1, 1, 1)
    one, other = traces(balanced(net))
    # tr K · tr G is least at (tr (K^½ G K^½)^½)², the square of the sum of the singular values of W_d W_a.
    product = torch.einsum("oi...,ij->oj...", net.layer("d").weight, net.layer("a").weight[:, :, 0, 0])
    least = float(torch.linalg.svdvals(product.movedim(1, -1).flatten(0, -2)).sum()) ** 2
    assert least * (1 - 1e-4) <= one * other < 1.05 * least
    assert one * other < 0.1 * traces(net)[0] * traces(net)[1]


@torch.no_grad()
def test_rounding_costs_less() -> None:
    net = network(STREAMS["acbd"])
    for name in "ac":  # a few channels are written strongly, and few of their weights
        layer, rare = net.layer(name), torch.rand(CHANNELS, CHANNELS, 1, 1) < 0.2
        layer.weight.data *= torch.where(rare, 10.0, 1.0) * torch.logspace(-1, 1, CHANNELS).view(-1, 1, 1, 1)
    x, bits = torch.randn(64, 3, 12, 12), BitConfig.uniform(net.table.names, Precision(3))
    expected = net.model(x)

    def error(made: Network, settings: Settings | None = None) -> float:
        layers = reconstruct(made, x, bits, settings).layers if settings else plainly_rounded(made, [x], bits)
        return float((quantized(net, layers).model(x) - expected).square().mean())

    assert error(balanced(net)) < 0.7 * error(net)
    assert error(net, Settings(steps=0)) < 0.9 * error(net, Settings(steps=0, basis="given"))


def test_biases_that_are_written_are_read_in_the_same_basis() -> None:
    net = network(STREAMS["acbd"])
    bias_of(net.layer("a")).data += torch.arange(CHANNELS)
    x = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        assert torch.allclose(balanced(net).model(x), net.model(x), atol=1e-4)
