"""Units in steps of their quantizers: the same values and gradients, fewer roundings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from captured import of_images
from families import SIDE, small
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from recon.graph.layers import Layer
from recon.graph.network import Network, Unit
from recon.quantizers.insert import find_ranges, quantize_inputs, quantizer_of, quantizers_of
from recon.quantizers.integer_domain import in_integer_domain
from recon.quantizers.learned import bias_of, learn_rounding, rounding_of
from recon.quantizers.rounding import make_rounding
from recon.quantizers.weights import codes_at, search_grid


class Residual(nn.Module):
    """Two residual blocks behind a first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(torch.relu(self.first(x))).mean((2, 3))  # type: ignore[no-any-return]


def rounded_unit(make: Callable[[], Network], size: int, place: int) -> tuple[Unit, dict[str, Layer], Tensor]:
    """A unit with roundings and 4-bit inputs, its layers by name, and what it may read."""
    torch.manual_seed(0)
    network = make()
    network = quantize_inputs(network, dict.fromkeys(network.table.names, 4))
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    for unit in network.units[:place]:
        (x,) = unit.module(x)
    unit = network.units[place]
    layers = {name: network.layer(name) for name in unit.layers}
    find_ranges(unit.module, layers, [x])
    for layer in layers.values():
        grid = search_grid(layer.weight, 4)
        learn_rounding(layer, make_rounding("straight-through", codes_at(layer.weight, grid), grid))
        generator = torch.Generator().manual_seed(len(layer.weight))
        # Without biases some outputs are zero but for how sums are rounded, at the kink of ReLU.
        bias_of(layer).data = 0.1 * torch.randn(len(layer.weight), generator=generator)
        bias_of(layer).requires_grad_()
    for quantizer in quantizers_of(layers.values()):
        quantizer.log_scale.requires_grad_()
    return unit, layers, x


UNITS = {
    "basic": (lambda: of_images(Residual(), (3, 8, 8)), 8, 1),
    "inverted": (lambda: small("mobilenet_v2")[1], SIDE, 3),
    "strided": (lambda: small("mobilenet_v2")[1], SIDE, 2),
}


@pytest.mark.parametrize("kind", UNITS)
@pytest.mark.parametrize("width", [0.3, 1.0, 3.0])  # of the ranges: cut off by the range, by the cap of ReLU6
def test_values_and_gradients_stay(kind: str, width: float) -> None:
    unit, layers, x = rounded_unit(*UNITS[kind])
    quantizers = quantizers_of(layers.values())
    for quantizer in quantizers:
        quantizer.log_scale.data += torch.tensor(width).log()
    learned = [quantizer.log_scale for quantizer in quantizers] + [bias_of(layer) for layer in layers.values()]
    for rounding in map(rounding_of, layers.values()):
        learned += [rounding.code, rounding.log_scale]
    found = []
    for module in (unit.module, in_integer_domain(unit.module, layers)):
        (y,) = module(x)
        push = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        found.append([y.detach(), *torch.autograd.grad((y * push).sum(), learned)])
    # A gradient of a step size is a sum of terms that may all but cancel: its last digits are those of the terms.
    rounded_off = torch.finfo(torch.float32).eps * float(push.norm() * found[0][0].norm())
    for value, expected in zip(found[1], found[0], strict=True):
        assert float((value - expected).norm()) <= 1e-4 * float(expected.norm()) + rounded_off


def test_every_tensor_is_rounded_once() -> None:
    unit, layers, x = rounded_unit(*UNITS["inverted"])
    first, *others = (found for layer in layers.values() if (found := quantizer_of(layer)) is not None)
    calls: list[nn.Module] = []
    for quantizer in (first, *others):
        quantizer.register_forward_hook(lambda made, _, __: calls.append(made))
    unit.module(x)
    assert calls == [first, *others]  # the expansion and the shortcut read one rounded tensor
    calls.clear()
    in_integer_domain(unit.module, layers)(x)
    assert calls == [first]  # the others round what is in steps already


def test_nothing_changes_without_quantizers_or_where_activations_are_left_out() -> None:
    unit, layers, _ = rounded_unit(*UNITS["basic"])
    quantizers_of(layers.values())[0].leave_unquantized(0.5)
    assert in_integer_domain(unit.module, layers) is unit.module
    network = of_images(Residual(), (3, 8, 8))
    floats = {name: network.layer(name) for name in network.units[1].layers}
    assert in_integer_domain(network.units[1].module, floats) is network.units[1].module
