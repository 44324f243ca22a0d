"""Putting learned roundings on layers, training them, and taking the stored weights off again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from recon.graph.layers import Layer
from recon.quantizers.coded import to_bias_grid
from recon.quantizers.rounding import Rounding, StraightThrough


def bias_of(layer: Layer) -> Tensor:
    """The layer's bias (O,), or (0,) of an embedding."""
    return layer.bias


def learn_rounding(layer: Layer, rounding: Rounding) -> None:
    """From now on `layer.weight` is what `rounding` makes of it; an earlier rounding is replaced."""
    set_weight(layer, layer.weight)
    rounding = rounding.to(layer.weight.device)
    if layer.weight.dim() == 4:
        rounding = rounding.to(memory_format=torch.channels_last)
    parametrize.register_parametrization(layer, "weight", rounding, unsafe=True)


def set_weight(layer: Layer, weight: Tensor) -> None:
    """Gives a layer the plain weight (O, …), without a rounding."""
    weight = weight.detach()
    if parametrize.is_parametrized(layer, "weight"):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    layer.weight.data = weight


def rounding_of(layer: Layer) -> Rounding:
    """The rounding that `learn_rounding` put on a layer."""
    rounding = layer.parametrizations.weight[0]  # type: ignore[union-attr, index]
    assert isinstance(rounding, Rounding)
    return rounding


def decide_rounding(layer: Layer) -> None:
    """Decides every rounding that is still between two integers, and puts the biases of entropy-coded layers where
    files hold them: what comes behind can make up for it."""
    rounding = rounding_of(layer)
    if rounding.grid.rate:
        bias_of(layer).data = to_bias_grid(bias_of(layer).detach())
    if not isinstance(rounding, StraightThrough):
        stored = rounding.freeze()
        learn_rounding(layer, StraightThrough(stored.codes.float(), stored.grid))
