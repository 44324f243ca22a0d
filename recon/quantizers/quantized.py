"""What a low-bit network is made of, and the network that computes with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hwmodel import FLOAT_BITS, BitConfig, InputError, Precision
from recon.compute.arithmetic import channels_last
from recon.graph.layers import Layer
from recon.graph.network import Network
from recon.quantizers.coded import to_bias_grid
from recon.quantizers.inputs import InputGrid
from recon.quantizers.insert import find_ranges, frozen_inputs, quantize_inputs, quantizers_of
from recon.quantizers.learned import bias_of, rounding_of
from recon.quantizers.nearest import nearest
from recon.quantizers.weights import QuantizedWeight


@dataclass(frozen=True, slots=True)
class QuantizedLayers:
    """By layer name: stored weights, half-precision biases (O,), and the grids of the inputs that are quantized."""

    weights: dict[str, QuantizedWeight]
    biases: dict[str, Tensor]
    inputs: dict[str, InputGrid] = field(default_factory=dict)

    def config(self, names: Sequence[str]) -> BitConfig:
        """The bits of these layers."""
        grids = [(self.weights[name].grid, self.inputs.get(name)) for name in names]
        return BitConfig(
            tuple(names), tuple(Precision(w.bits, grid.bits if grid else FLOAT_BITS, w.rate) for w, grid in grids)
        )


def quantized(network: Network, layers: QuantizedLayers) -> Network:
    """A copy of `network` that computes with the given layers."""
    result = quantize_inputs(network, {name: grid.bits for name, grid in layers.inputs.items()})
    for name, weight in layers.weights.items():
        layer = result.layer(name)
        layer.weight.data = channels_last(weight.dequantize().to(layer.weight.device))
        bias_of(layer).data = layers.biases[name].float().to(layer.weight.device)
        for quantizer in quantizers_of([layer]):
            quantizer.set_grid(layers.inputs[name])
    return result


def plainly_rounded(
    network: Network, leaves: Sequence[Tensor], config: BitConfig, symmetric: Collection[int] = ()
) -> QuantizedLayers:
    """Every weight rounded to the nearest level of its own best grid, inputs on the grids that suit samples, whose
    tensors are (N, …), best: the baseline of every comparison.

    Weights of `symmetric` bits have grids with the zero-point in the middle.
    """
    work = quantize_inputs(network, input_bits(config))
    layers = {name: work.layer(name) for name in config.layers}
    find_ranges(work.module, layers, leaves)
    weights = {name: nearest(layer.weight, config[name], config[name].w in symmetric) for name, layer in layers.items()}
    return QuantizedLayers(weights, _stored_biases(layers, weights), frozen_inputs(layers))


def stored_layers(layers: Mapping[str, Layer]) -> QuantizedLayers:
    """What layers with roundings will be stored as. Raises InputError where a bias overflows half precision."""
    weights = {name: rounding_of(layer).freeze() for name, layer in layers.items()}
    return QuantizedLayers(weights, _stored_biases(layers, weights), frozen_inputs(layers))


def input_bits(config: BitConfig) -> dict[str, int]:
    """The bits of the inputs that are quantized, by layer name."""
    return {name: config[name].a for name in config.layers if config[name].a != FLOAT_BITS}


def _stored_biases(layers: Mapping[str, Layer], weights: Mapping[str, QuantizedWeight]) -> dict[str, Tensor]:
    """Every layer's bias (O,) as files hold it, float32: at half-precision values or, where the layer is entropy-coded,
    at multiples of a power of two. Raises InputError on overflow."""
    stored = {}
    for name, layer in layers.items():
        bias = bias_of(layer).detach()
        stored[name] = to_bias_grid(bias) if weights[name].grid.rate else bias.half().float()
        if not torch.isfinite(stored[name]).all():
            raise InputError(f"layer {name!r}: biases must be below 65504 to be stored in half precision")
    return stored
