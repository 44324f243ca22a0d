"""Quantized activations: against torch's own operators, brute force, and by hand."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from captured import of_images, unit_by_unit
from torch import Tensor, nn

from recon.graph.granularity import regroup
from recon.graph.network import Network, capture
from recon.quantizers.inputs import Histogram, InputGrid, InputQuantizer, round_to_grid
from recon.quantizers.insert import find_ranges, frozen_inputs, quantize_inputs, quantizer_of


def quantizer(bits: int, scale: float, zero_point: int) -> InputQuantizer:
    made = InputQuantizer(bits)
    made.set_grid(InputGrid(bits, scale, zero_point))
    made.log_scale.requires_grad_()
    return made


@pytest.mark.parametrize(("bits", "zero"), [(2, 0), (4, 0), (4, 7), (8, 128)])
def test_values_and_gradients_are_those_of_torch(bits: int, zero: int) -> None:
    levels, scale = 2**bits - 1, 0.0625
    x = torch.randn(64, 9, generator=torch.Generator().manual_seed(0)) * scale * levels / 2
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    made = quantizer(bits, scale, zero)
    size, place = torch.tensor([scale], requires_grad=True), torch.tensor([float(zero)])
    rounded = made(ours)
    expected = torch._fake_quantize_learnable_per_tensor_affine(theirs, size, place, 0, levels, 1.0)
    assert torch.equal(rounded, torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, levels))
    assert torch.equal(rounded, expected)
    push = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    rounded.backward(push)
    expected.backward(push)
    assert ours.grad is not None
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
    assert made.log_scale.grad is not None
    assert size.grad is not None
    assert float(made.log_scale.grad) == pytest.approx(scale * float(size.grad), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(("cap", "scale"), [(math.inf, 0.25), (6.0, 0.3), (6.0, 0.43), (6.0, 0.9)])
def test_behind_relu_it_does_what_relu_and_the_quantizer_do(cap: float, scale: float) -> None:
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for how in ("apart", "fused", "in codes"):
        made = quantizer(4, scale, 0)
        made.cap = None if how == "apart" else cap
        x = (6 * torch.randn(64, 9, generator=torch.Generator().manual_seed(0))).requires_grad_()
        if how == "in codes":
            y = made.codes(x * (-made.log_scale).exp()) * made.log_scale.exp()
        else:
            y = made(x if how == "fused" else F.hardtanh(x, 0.0, cap))
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
        assert x.grad is not None
        assert made.log_scale.grad is not None
        found.append((y.detach(), x.grad, made.log_scale.grad))
    (values, gradient, slope), (own_values, own_gradient, own_slope), in_codes = found
    assert torch.equal(own_values, values)
    assert torch.equal(own_gradient, gradient)
    assert float(own_slope) == pytest.approx(float(slope), rel=1e-5)
    for found_in_codes, expected in zip(in_codes, found[0], strict=True):
        assert torch.allclose(found_in_codes, expected)


def test_a_quantizer_stands_for_a_relu_that_one_layer_alone_reads() -> None:
    net, x = residual(), torch.randn(8, 3, 8, 8)
    rounded = quantize_inputs(net, dict.fromkeys(net.table.names, 4))
    found = {name: quantizer.cap for name in net.table.names if (quantizer := quantizer_of(rounded.layer(name)))}
    # "2.one" reads what the shortcut reads too, and the last ReLU is the output of its block
    assert found == {"0": None, "2.one": None, "2.two": math.inf, "4": None}
    assert torch.equal(rounded.model(x), net.model(x))  # as long as there is no grid
    inputs, expected = [], []
    hook = rounded.layer("2.two").register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    hook2 = net.layer("2.two").register_forward_pre_hook(lambda _, args: expected.append(args[0]))
    rounded.model(x), net.model(x)
    hook.remove(), hook2.remove()
    assert float(expected[0].min()) == 0
    assert torch.equal(inputs[0], expected[0])


def test_a_part_of_many_values_tells_the_step_size() -> None:
    x = torch.randn(40, 32, 64, 64, generator=torch.Generator().manual_seed(0))  # of which 8 are 2^20 values
    slopes = []
    for part in (x, x[:8]):
        made = quantizer(3, 0.25, 3)
        made(part).square().sum().backward()
        assert made.log_scale.grad is not None
        slopes.append(float(made.log_scale.grad) / len(part))
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-5)


def test_everything_passes_until_there_is_a_grid_and_some_when_dropped() -> None:
    made, x = InputQuantizer(2), torch.rand(50, 40, 3, 3)
    assert torch.equal(made(x), x)
    made.set_grid(InputGrid(2, 0.5, 0))
    assert not torch.equal(made(x), x)
    made.leave_unquantized(0.3, torch.Generator().manual_seed(0))
    found = made(x)
    untouched = (found == x).flatten(2).all(2)
    assert float(untouched.float().mean()) == pytest.approx(0.3, abs=0.04)
    assert set(found[~untouched].unique().tolist()) <= {0.0, 0.5, 1.0}


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_grid_of_a_histogram_is_nearly_the_best_there_is(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for x in (torch.randn(20_000, generator=generator), torch.randn(20_000, generator=generator).relu()):
        seen = Histogram()
        for part in x.split(1000):  # the range grows on the way
            seen.add(part)
        assert float(seen.counts.sum()) == len(x)
        grid, levels = seen.grid(bits), 2**bits - 1

        def error(scale: float, zero: int, x: Tensor = x, levels: int = levels) -> float:
            return float((torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, levels) - x).square().mean())

        width = float(x.max() - x.min())
        best = min(
            error(width * share / levels, zero)
            for share, zero in itertools.product(torch.linspace(0.1, 1, 150).tolist(), range(levels + 1))
        )
        assert 0.998 * best <= error(grid.scale, grid.zero_point) <= 1.03 * best


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.two(torch.relu(self.one(x))))


def residual() -> Network:
    torch.manual_seed(0)
    return of_images(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Residual(4), nn.Flatten(), nn.Linear(144, 5)), (3, 8, 8)
    )


def ready(net: Network, bits: int, x: Tensor) -> Network:
    rounded = quantize_inputs(net, dict.fromkeys(net.table.names, bits))
    find_ranges(rounded.module, {name: rounded.layer(name) for name in net.table.names}, [x])
    return rounded


def test_whoever_reads_a_tensor_reads_it_rounded() -> None:
    net, x = residual(), torch.randn(16, 3, 8, 8)
    rounded = ready(net, 3, x)
    grids = frozen_inputs({name: rounded.layer(name) for name in net.table.names})

    def q(name: str, x: Tensor) -> Tensor:
        grid = grids[name]
        return torch.fake_quantize_per_tensor_affine(x, grid.scale, grid.zero_point, 0, 7)

    with torch.no_grad():
        a = q("2.one", torch.relu(net.layer("0")(q("0", x))))
        b = q("2.two", torch.relu(net.layer("2.one")(a)))
        c = torch.relu(a + net.layer("2.two")(b))  # the other operand of the addition is rounded too
        expected = net.layer("4")(q("4", c.flatten(1)))
        assert torch.allclose(rounded.model(x), expected, atol=1e-5)
        assert torch.equal(unit_by_unit(rounded, x)[""], rounded.model(x))
        assert torch.equal(copy.deepcopy(rounded.model)(x), rounded.model(x))
    assert all(quantizer_of(net.layer(name)) is None for name in net.table.names)  # the network stays as it was


class Several(nn.Module):
    """Two layers read one tensor, as queries and keys do, and so does an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.ids, self.last = nn.Embedding(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.left(x).tanh() * self.right(x).tanh() + self.ids(ids))


def test_each_layer_has_a_width_of_its_own_and_others_read_the_widest() -> None:
    torch.manual_seed(0)
    x, ids = torch.randn(32, 4), torch.randint(0, 5, (32,))
    net = regroup(capture(Several(), (x, ids)), "network")
    rounded = quantize_inputs(net, {"left": 2, "right": 4, "ids": 4})
    assert quantizer_of(rounded.layer("ids")) is None  # which reads numbers of rows
    layers = {name: rounded.layer(name) for name in ("left", "right")}
    find_ranges(rounded.module, layers, [x, ids])
    grids = frozen_inputs(layers)
    with torch.no_grad():
        a = net.layer("first")(x)
        narrow, wide = (round_to_grid(a, grids[name]) for name in ("left", "right"))
        z = wide + net.layer("left")(narrow).tanh() * net.layer("right")(wide).tanh() + net.layer("ids")(ids)
        assert torch.allclose(rounded.model(x, ids), net.layer("last")(z), atol=1e-6)
        assert not torch.allclose(narrow, wide)


class Reused(nn.Module):
    """One layer called twice, on what another layer reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(torch.relu(self.shared(torch.relu(self.first(x)))))


def test_a_layer_called_twice_has_one_grid_for_both_calls() -> None:
    torch.manual_seed(0)
    net, x = of_images(Reused(), (4,)), torch.randn(64, 4)
    rounded = ready(net, 4, x)
    grids = frozen_inputs({name: rounded.layer(name) for name in net.table.names})
    with torch.no_grad():
        z = torch.relu(net.layer("first")(round_to_grid(x, grids["first"])))
        for _ in range(2):
            z = net.layer("shared")(round_to_grid(torch.relu(z), grids["shared"]))
        assert torch.allclose(rounded.model(x), z, atol=1e-6)
