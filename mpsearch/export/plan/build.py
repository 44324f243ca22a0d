"""Building the integer plan of a low-bit network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mpsearch.export.plan.draft import Draft, Value, draft
from mpsearch.export.plan.grids import fill_grids, one_grid_each
from mpsearch.export.plan.records import LAYERS, LOWEST, Grid, Op, Plan, Weight
from mpsearch.export.plan.records import Tensor as PlanTensor
from mpsearch.export.plan.weights import float_weight, layer_weight
from recon.graph.network import Network
from recon.quantizers.quantized import QuantizedLayers, quantized
from recon.quantizers.weights import QuantizedWeight


def build_plan(
    network: Network,
    layers: QuantizedLayers,
    leaves: Sequence[Tensor],
    *,
    real_outputs: bool = True,
    narrow: bool = False,
    channel_steps: bool = True,
) -> Plan:
    """The plan of `network` computing with `layers`.

    Calibration samples, whose tensors are (N, …), give grids to what no layer reads. Where `real_outputs`, linear maps
    that write outputs of the network give real numbers, which ONNX runtimes can; else int8 as everything does.
    Where `narrow`, weights are at least −127, as TFLite specifies. Without `channel_steps`, inputs of layers that have
    a step for every channel get one for all, from calibration samples.
    """
    low_bit = quantized(network, layers)
    found = draft(low_bit, channel_steps)
    chosen = fill_grids(found, low_bit.module, leaves, real_outputs)
    ops = one_grid_each(found)
    tensors = {name: _tensor(name, value) for name, value in found.values.items()}
    rescaled = _rescaled(layers, found.halvings)
    weights = _weights(found, rescaled, tensors, narrow)
    complete = tuple(_with_weight(op, weights) for op in ops)
    inexact = [
        op.name for op in complete if op.weight is not None and op.weight.steps is not None and not op.weight.exact
    ]
    notes = []
    if inexact:
        notes.append(f"weights rounded once more to int8 with zero-point 0: {_some(inexact)}")
    single = [] if channel_steps else [name for name, grid in layers.inputs.items() if grid.halvings]
    if single:
        notes.append(
            f"one step for all channels of the inputs of {_some(single)}, which have one for each in the packed file: "
            "search with the --target"
        )
    if chosen:
        notes.append(f"8-bit grids from calibration samples for tensors that no layer reads: {_some(chosen)}")
    plan = Plan(
        complete,
        tensors,
        tuple(found.inputs),
        tuple(found.outputs),
        network.names,
        found.constants,
        tuple(notes),
    )
    return plan


def simulated_plan(network: Network, layers: QuantizedLayers) -> Plan:
    """The plan of `network` as it is simulated: real arithmetic, tensors rounded where a layer asks for it alone."""
    found = draft(quantized(network, layers))
    tensors = {name: _tensor(name, value) for name, value in found.values.items()}
    rescaled = _rescaled(layers, found.halvings)
    weights = {
        op.output: layer_weight(rescaled.weights[op.name], layers.biases[op.name], None)
        for op in found.ops
        if op.kind in LAYERS
    }
    ops = tuple(_with_weight(op, weights) for op in found.ops)
    return Plan(ops, tensors, tuple(found.inputs), tuple(found.outputs), network.names, found.constants, ())


def float_plan(network: Network) -> Plan:
    """The plan of a float network: what a low-bit one is compared with in the same runtime."""
    found = draft(network)
    tensors = {name: _tensor(name, value) for name, value in found.values.items()}
    weights = {}
    for op in found.ops:
        if op.kind in LAYERS:
            layer = network.layer(op.name)
            weights[op.output] = float_weight(layer.weight, layer.bias)
    ops = tuple(_with_weight(op, weights) for op in found.ops)
    return Plan(ops, tensors, tuple(found.inputs), tuple(found.outputs), network.names, found.constants, ())


def _rescaled(layers: QuantizedLayers, halvings: Mapping[str, Sequence[int]]) -> QuantizedLayers:
    """The layers, weights divided by what the channels of their inputs are multiplied by: powers of two."""
    weights = dict(layers.weights)
    for name, times in halvings.items():
        scale = weights[name].grid.scale
        factors = torch.exp2(-torch.tensor(times, dtype=torch.float32, device=scale.device))
        weights[name] = _scaled(weights[name], factors.repeat_interleave(len(scale) // len(times)))
    return replace(layers, weights=weights)


def _scaled(weight: QuantizedWeight, factors: Tensor) -> QuantizedWeight:
    """A weight whose output channels are multiplied (O,)."""
    return replace(weight, grid=replace(weight.grid, scale=weight.grid.scale * factors))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _tensor(name: str, value: Value) -> PlanTensor:
    shape = tuple(value.node.meta.get("shape", ()))
    floating = bool(value.node.meta.get("floating", True))
    if value.grid is None:
        return PlanTensor(name, shape, None, value.cap, floating)
    bits, scale, zero = value.grid.bits, value.grid.scale, value.grid.zero_point
    low, high = 0, 2**bits - 1
    if value.cap is not None:
        low = max(low, zero)
        if math.isfinite(value.cap):
            high = min(high, int(np.rint(np.float32(value.cap) * np.float32(1 / scale))) + zero)
    grid = Grid(scale, zero + LOWEST, low + LOWEST, high + LOWEST, bits)
    return PlanTensor(name, shape, grid, value.cap, floating)


def _weights(
    found: Draft, layers: QuantizedLayers, tensors: Mapping[str, PlanTensor], narrow: bool
) -> dict[str, Weight]:
    """By the output of every call of a layer: calls on different grids count biases in different steps."""
    weights = {}
    for op in found.ops:
        if op.kind in LAYERS:
            grid = tensors[op.inputs[0]].grid
            scale = None if grid is None or op.kind == "embedding" else grid.scale
            weight, bias = layers.weights[op.name], layers.biases[op.name]
            if op.output in found.doublings:
                factors = torch.exp2(torch.tensor(found.doublings[op.output], dtype=torch.float32, device=bias.device))
                weight, bias = _scaled(weight, factors), bias * factors
            weights[op.output] = layer_weight(weight, bias, scale, narrow)
    return weights


def _with_weight(op: Op, weights: Mapping[str, Weight]) -> Op:
    if op.output not in weights:
        return op
    return Op(op.kind, op.name, op.inputs, op.output, op.settings, weights[op.output])
