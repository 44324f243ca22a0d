"""Putting learned roundings on layers, training them, and taking the stored weights off again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recon.quantizer import QuantizedWeight
from recon.rounding import Rounding, StraightThrough

Layer = nn.Conv2d | nn.Linear


def bias_of(layer: Layer) -> Tensor:
    """The layer's bias (O,); a traced network's layers all have one."""
    assert layer.bias is not None
    return layer.bias


class Rates(Protocol):
    """Learning rates of Adam: per step in code units, in log-scale, in output units."""

    @property
    def code_rate(self) -> float: ...
    @property
    def scale_rate(self) -> float: ...
    @property
    def bias_rate(self) -> float: ...


def attach(layer: Layer, rounding: Rounding) -> None:
    """From now on `layer.weight` is what `rounding` makes of it; an earlier rounding is replaced."""
    if parametrize.is_parametrized(layer, "weight"):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    parametrize.register_parametrization(layer, "weight", rounding.to(layer.weight.device), unsafe=True)


def rounding_of(layer: Layer) -> Rounding:
    """The rounding that `attach` put on a layer."""
    rounding = layer.parametrizations.weight[0]  # type: ignore[union-attr, index]
    assert isinstance(rounding, Rounding)
    return rounding


def harden(layer: Layer) -> None:
    """Decides every rounding that is still between two integers."""
    rounding = rounding_of(layer)
    if not isinstance(rounding, StraightThrough):
        stored = rounding.freeze()
        attach(layer, StraightThrough(stored.dequantize(), stored.grid))


def stored_weight(layer: Layer) -> QuantizedWeight:
    """The weight of a layer with a rounding, as it will be stored."""
    return rounding_of(layer).freeze()


def adam(layers: Mapping[str, Layer], rates: Rates, factor: float = 1.0) -> torch.optim.Adam:
    """Adam over the codes, scales and biases of layers with roundings, at `factor` times the rates."""
    roundings = [rounding_of(layer) for layer in layers.values()]
    scales = [rounding.log_scale for rounding in roundings if rounding.log_scale.requires_grad]
    biases = [bias_of(layer).requires_grad_() for layer in layers.values()]
    groups = [
        {"params": [rounding.code for rounding in roundings], "lr": rates.code_rate * factor},
        {"params": scales, "lr": rates.scale_rate * factor},
        {"params": biases, "lr": rates.bias_rate * factor},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]])
