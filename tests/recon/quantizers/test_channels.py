"""A step for every channel of what depthwise convolutions read: against torch's operators, and by its worth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hwmodel import Precision
from hwmodel.size import layer_bytes, packed_bytes
from recon.graph.network import Network, capture
from recon.quantizers.channels import ChannelValues, split_halvings
from recon.quantizers.inputs import Histogram, InputGrid, InputQuantizer, round_to_grid
from recon.quantizers.insert import find_ranges, frozen_inputs, quantize_inputs

HALVINGS = (0, 3, 1)


def maps(*widths: float) -> Tensor:
    """Maps (8, C, 6, 6) of SiLU, each channel as wide."""
    noise = torch.randn(8, len(widths), 6, 6, generator=torch.Generator().manual_seed(0))
    return nn.functional.silu(noise * torch.tensor(widths)[:, None, None])


def network() -> Network:
    """Depthwise convolutions behind SiLU and behind ReLU, one that is no depthwise, and one that is called twice."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.smooth = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.rectified, self.groups = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1, groups=2)
            self.twice = nn.Conv2d(4, 4, 3, padding=1, groups=4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.smooth(nn.functional.silu(self.stem(x)))
            x = self.twice(self.twice(self.groups(self.rectified(x.relu()))))
            return x.mean((2, 3))

    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.stem.weight[0] *= 100
    return capture(net, torch.randn(2, 3, 8, 8))


def test_values_and_gradients_are_those_of_torch_by_channel() -> None:
    grid = InputGrid(4, 0.5, 5, HALVINGS)
    made = InputQuantizer(4)
    made.set_grid(grid)
    x = maps(1.0, 0.2, 3.0).requires_grad_()
    theirs = x.detach().clone().requires_grad_()
    steps, zeros = 0.5 / 2 ** torch.tensor(HALVINGS, dtype=torch.float32), torch.full((3,), 5, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(theirs, steps, zeros, 1, 0, 15)
    rounded = made(x)
    assert torch.equal(rounded, expected)
    assert torch.equal(round_to_grid(x.detach(), grid), expected)
    push = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    rounded.backward(push)
    expected.backward(push)
    assert torch.equal(x.grad, theirs.grad)  # type: ignore[arg-type]
    assert made.freeze() == grid


def test_the_step_is_learned_as_that_of_one_channel_is() -> None:
    """∂/∂log s of channels on halves of a step, each by itself, adds up."""
    x = maps(1.0, 0.2, 3.0)
    push = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    slopes = []
    for channels, halvings in [(slice(None), HALVINGS), *((slice(c, c + 1), (k,)) for c, k in enumerate(HALVINGS))]:
        made = InputQuantizer(4)
        made.set_grid(InputGrid(4, 0.5, 5, halvings))
        made.log_scale.requires_grad_()
        made(x[:, channels]).backward(push[:, channels])
        slopes.append(float(made.log_scale.grad))  # type: ignore[arg-type]
    assert slopes[0] == pytest.approx(sum(slopes[1:]), rel=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_channels_are_rounded_no_worse_than_by_one_step_and_narrow_ones_much_better(bits: int) -> None:
    x = maps(100.0, 0.5, 0.5, 5.0)
    seen, one = ChannelValues(torch.ones(4)), Histogram()
    for part in x.split(2):
        seen.add(part)
        one.add(part)
    grid = seen.grid(bits)
    errors = (round_to_grid(x, grid) - x).square().mean((0, 2, 3))
    others = (round_to_grid(x, one.grid(bits)) - x).square().mean((0, 2, 3))
    assert grid.halvings[0] == 0 < grid.halvings[3] <= grid.halvings[1]
    assert errors.sum() < others.sum()
    assert (errors[1:3] < others[1:3] / 20).all()


def test_every_channel_has_the_halvings_of_least_error() -> None:
    """By trying each, all values of the maps being seen."""
    x = maps(20.0, 0.3, 2.0)
    seen = ChannelValues(torch.ones(3))
    seen.add(x)
    grid = seen.grid(6)
    for channel, halvings in enumerate(grid.halvings):
        part = x[:, channel : channel + 1]
        errors = {
            k: float((round_to_grid(part, InputGrid(6, grid.scale, grid.zero_point, (k,))) - part).square().mean())
            for k in range(16)
        }
        assert errors[halvings] <= 1.05 * min(errors.values())


@pytest.mark.parametrize("sign", [1, -1])
def test_channels_on_one_side_of_zero(sign: int) -> None:
    x = sign * maps(5.0, 0.1).abs()
    seen = ChannelValues(torch.ones(2))
    seen.add(x)
    grid = seen.grid(8)
    assert grid.zero_point == (0 if sign > 0 else 255)
    assert (round_to_grid(x, grid) - x).abs().amax((0, 2, 3)).tolist() < [0.1, 0.01]


def test_channels_that_are_zero_need_no_step() -> None:
    seen = ChannelValues(torch.ones(2))
    seen.add(torch.zeros(2, 2, 3, 3))
    assert round_to_grid(torch.zeros(1, 2, 1, 1), seen.grid(8)).eq(0).all()


def test_which_layers_have_them_and_what_they_take_in_a_file() -> None:
    net = network()
    assert [spec.name for spec in net.table if spec.channel_steps] == ["smooth"]
    smooth, rectified = (next(s for s in net.table if s.name == name) for name in ("smooth", "rectified"))
    more = layer_bytes(smooth, Precision(8, 8)) - layer_bytes(rectified, Precision(8, 8))
    assert more == packed_bytes(4, 4) == 2
    assert layer_bytes(smooth, Precision(8)) == layer_bytes(rectified, Precision(8))
    plain = net.with_one_step()
    assert not any(spec.channel_steps for spec in plain.table)
    assert not plain.layer("smooth").channel_steps
    assert net.layer("smooth").channel_steps
    assert split_halvings(net.table, torch.tensor([1, 2, 3, 4]).numpy())[1] == (1, 2, 3, 4)


def test_quantizers_get_them_and_lose_less() -> None:
    net = network()
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    (truth,) = net.module(x)
    errors = []
    for one in (net, net.with_one_step()):
        work = quantize_inputs(one, {"smooth": 8})
        layers = {"smooth": work.layer("smooth")}
        find_ranges(work.module, layers, [x])
        grid = frozen_inputs(layers)["smooth"]
        assert (len(grid.halvings) == 4) == (one is net)
        errors.append(float((work.module(x)[0] - truth).square().mean()))
    assert errors[0] < errors[1] / 10
