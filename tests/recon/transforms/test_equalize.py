"""Equalized inputs of depthwise convolutions: which there are, that nothing else changes, and that they lose less."""

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
from recon.quantizers.quantized import quantized
from recon.reconstruct import reconstruct
from recon.settings import Settings
from recon.transforms.equalize import best_tops, equalized

CHANNELS = 8
How = Callable[["Block", Tensor], Tensor]


class Block(nn.Module):
    """Between two layers, a residual block with a depthwise convolution, whose channels are of all widths."""

    def __init__(self, how: How) -> None:
        super().__init__()
        self.how, self.relu6 = how, nn.ReLU6(inplace=True)
        self.first, self.last = nn.Conv2d(3, CHANNELS, 3), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.writer, self.other = (nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(2))
        self.depthwise = nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1, groups=CHANNELS)
        self.grouped = nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1, groups=2)
        self.reader = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
        width = torch.logspace(-0.5, 1.2, CHANNELS)
        self.writer.weight.data *= width.view(-1, 1, 1, 1)
        self.depthwise.weight.data /= width.repeat_interleave(2).view(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y: Tensor = self.last(x + self.reader(self.how(self, x)))
        return y


PAIRS: dict[str, How] = {
    "relu6": lambda m, x: m.depthwise(m.relu6(m.writer(x))),
    "relu": lambda m, x: m.depthwise(F.relu(m.writer(x))),
    "method": lambda m, x: m.depthwise(m.writer(x).relu()),
}
NONE: dict[str, How] = {
    "no positive factor passes": lambda m, x: m.depthwise(F.hardswish(m.writer(x))),
    "read by others": lambda m, x: m.depthwise(r := F.relu(m.writer(x))) + r.repeat(1, 2, 1, 1),
    "written to others": lambda m, x: m.depthwise(F.relu(z := m.writer(x))) + z.repeat(1, 2, 1, 1),
    "not written by a layer": lambda m, x: m.depthwise(F.relu(x + m.writer(x))),
    "written by a layer called twice": lambda m, x: m.depthwise(F.relu(m.writer(F.relu(m.writer(x))))),
    "not depthwise": lambda m, x: m.grouped(F.relu(m.writer(x))),
}


def network(how: How) -> Network:
    torch.manual_seed(0)
    return of_images(Block(how), (3, 12, 12))


def images(count: int = 64) -> Tensor:
    return 2 * torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("how", [*PAIRS.values(), *NONE.values()], ids=[*PAIRS, *NONE])
@torch.no_grad()
def test_pairs_are_found_and_nothing_is_computed_that_was_not_before(how: How) -> None:
    net, x = network(how), images()
    before = {name: tensor.clone() for name, tensor in net.model.state_dict().items()}
    made, exact = equalized(net, dict.fromkeys(net.table.names, 4), [x])
    assert (made is net) == (exact is net) == (how in NONE.values())
    for found in (exact.model(x), unit_by_unit(exact, x)[""]):
        assert torch.allclose(found, net.model(x), atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.model.state_dict().items())
    assert all(torch.equal(exact.layer(name).weight, made.layer(name).weight) for name in net.table.names)
    net.model.load_state_dict(made.model.state_dict())
    assert torch.equal(net.model(x), made.model(x))
    assert equalized(net, dict.fromkeys(net.table.names, 8), [x]) == (net, net)


@pytest.mark.parametrize(
    ("name", "pairs"), [("mobilenet_v2", 2), ("mobilenet_v3", 2), ("shufflenet", 4), ("resnet", 0)]
)
@torch.no_grad()
def test_families(name: str, pairs: int) -> None:
    _, net = small(name)
    x = torch.randn(4, 3, SIDE, SIDE)
    _, exact = equalized(net, dict.fromkeys(net.table.names, 4), [x])
    moved = [n for n in net.table.names if not torch.allclose(net.layer(n).weight, exact.layer(n).weight, rtol=1e-3)]
    assert len(moved) == 2 * pairs
    expected = net.model(x)
    assert (exact.model(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_channels_are_as_wide_as_their_best_ranges() -> None:
    net, x = network(PAIRS["relu6"]), images()
    _, exact = equalized(net, {"depthwise": 3}, [x])
    inputs: list[Tensor] = []
    hook = exact.layer("depthwise").register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    exact.model(x)
    hook.remove()
    tops = best_tops(inputs[0].transpose(0, 1).flatten(1), 3)
    assert tops.tolist() == pytest.approx([float(tops.max())] * CHANNELS, rel=0.05)
    assert float(tops.max()) == pytest.approx(6.0, rel=0.05)  # for ReLU6 cuts off the widest channel there


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_tops_are_nearly_the_best_there_are(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([torch.randn(9_000, generator=generator).relu(), torch.rand(9_000, generator=generator) ** 8])
    x = torch.cat([x * torch.tensor([[1.0], [100.0]]), torch.zeros(1, 9_000)])
    levels = 2**bits - 1

    def errors(tops: Tensor) -> Tensor:
        step = tops[:, None] / levels
        return ((x / step).round().clamp(0, levels) * step - x).square().mean(1)

    widest = x.amax(1).clamp_min(1e-9)
    best = torch.stack([errors(widest * share) for share in torch.linspace(0.05, 1, 400).tolist()]).amin(0)
    assert (errors(best_tops(x, bits)) <= 1.02 * best + 1e-12).all()


@pytest.mark.parametrize("how", ["relu6", "relu"])
def test_few_bits_lose_less_in_the_given_network(how: str) -> None:
    net, x, seen = network(PAIRS[how]), images(), images(256)[64:]
    bits = {name: Precision(8, 3 if name == "depthwise" else 8) for name in net.table.names}
    config = BitConfig(net.table.names, tuple(bits.values()))

    def error(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(seen) - net.model(seen)).square().mean())

    layers = reconstruct(net, x, config, Settings()).layers
    given = reconstruct(net, x, config, Settings(basis="given")).layers
    assert error(quantized(net, layers).model) < 0.6 * error(quantized(net, given).model)
