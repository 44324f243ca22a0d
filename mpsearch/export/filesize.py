"""The bytes of exported files: what they have, and the constant part of a network's, before anything is searched.

The constant part is measured on a file with the most that a plan can need: every input of a layer on a grid of its own,
codes cut off wherever they may be, zero-points that count in halves, no two constants alike. A finished model's file is
at most as large, and filled up to what was said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwmodel import BitConfig, Precision
from hwmodel.filesize import FileForm
from hwmodel.precision import HALVED_BITS, WEIGHT_BITS
from mpsearch.export.plan.build import build_plan
from mpsearch.export.plan.records import HIGHEST, LOWEST, SAME_GRID, Grid, Plan
from mpsearch.export.plan.records import Tensor as PlanTensor
from mpsearch.export.reference import portable
from recon.graph.network import Network
from recon.quantizers.inputs import InputGrid
from recon.quantizers.quantized import QuantizedLayers
from recon.quantizers.weights import Grid as WeightGrid
from recon.quantizers.weights import QuantizedWeight

BITS = 8
# Bytes beside what is measured: of each layer, what lengths of longer things take; of all, an empty filling and, where
# every width has constants of its own, those of the others.
SLACK, FILLING, WIDTHS = 6, 80, 300
LONGEST_NAME, MOST_BYTES = 32, 10**12
PLANS: Mapping[str, Mapping[str, bool]] = {
    "onnx": {"real_outputs": True},
    "onnx-packed": {"real_outputs": True},
    "tflite": {"real_outputs": False, "narrow": True, "channel_steps": False},
    "tflite-int4": {"real_outputs": False, "narrow": True, "channel_steps": False},
    "c": {"real_outputs": False, "channel_steps": False},
    "pt2e": {"real_outputs": False, "narrow": True, "channel_steps": False},
}


def about(
    reference: str, fingerprint: str, name: str, config: BitConfig, budgets: Mapping[str, float], packed_bytes: int
) -> dict[str, str]:
    """What an exported file says of itself: its bits by layer and its budgets as JSON, what it was made from."""
    return {
        "mpsearch.model": portable(reference),
        "mpsearch.fingerprint": fingerprint,
        "mpsearch.configuration": name,
        "mpsearch.bits": json.dumps(config.to_json(), separators=(",", ":")),
        "mpsearch.budgets": json.dumps(dict(budgets), separators=(",", ":")),
        "mpsearch.packed_bytes": str(packed_bytes),
    }


def plan_for(name: str, network: Network, layers: QuantizedLayers, leaves: tuple[Tensor, ...]) -> Plan:
    """The plan that files of a form are written from."""
    given: dict[str, Any] = dict(PLANS[name])
    return build_plan(network, layers, leaves, **given)


def numpy_dtypes(network: Network) -> tuple[np.dtype[np.generic], ...]:
    """The types of the network's inputs, real numbers in single precision."""
    return tuple(
        np.dtype(np.float32) if dtype.is_floating_point else torch.empty(0, dtype=dtype).numpy().dtype
        for dtype in network.dtypes
    )


def file_bytes(name: str, network: Network, plan: Plan, metadata: Mapping[str, str]) -> int:
    """Bytes of the file of a plan; of C, those of its constants. Raises InputError where there is no such file."""
    if name == "c":
        from mpsearch.export.c.write import constant_bytes

        return constant_bytes(plan)
    if name in ("tflite", "tflite-int4"):
        from mpsearch.export.tflite.write import write_tflite

        return len(write_tflite(plan, metadata, name == "tflite-int4"))
    from mpsearch.export.onnx.write import write_onnx

    return int(write_onnx(plan, metadata, numpy_dtypes(network), name == "onnx-packed").ByteSize())


def fixed_bytes(
    form: FileForm, network: Network, metadata: Mapping[str, str], leaves: tuple[Tensor, ...], abits: int
) -> int:
    """What a file of a network has beside its layers, inputs at `abits`; `metadata` is the longest that there may be.

    A few samples, whose tensors are (N, …), give shapes. Raises InputError where there is no such file of the network.
    """
    most = 0
    for bits in {min(form.width, default=BITS), min(max(form.width, default=BITS), HALVED_BITS), BITS}:
        precision = Precision(bits, abits)
        layers = sum(form.layer_bytes(layer, precision) for layer in network.table)
        plan = _fullest(plan_for(form.name, network, _unlike(network, precision, not form.convolutions), leaves))
        most = max(most, file_bytes(form.name, network, plan, metadata) - layers)
    if form.name == "c":  # arrays of numbers, and nothing else
        return most
    return most + SLACK * len(network.table) + FILLING + (WIDTHS if form.name == "onnx-packed" else 0)


def longest(reference: str, fingerprint: str, names: tuple[str, ...], budgets: Mapping[str, float]) -> dict[str, str]:
    """The longest that a file can say of itself."""
    widest = BitConfig.uniform(names, Precision(max(WEIGHT_BITS)))
    return about(reference, fingerprint, "x" * LONGEST_NAME, widest, budgets, MOST_BYTES)


def _unlike(network: Network, precision: Precision, free: bool) -> QuantizedLayers:
    """Layers of which no two hold the same, with zero-points in halves where these are `free` and may be."""
    generator = torch.Generator().manual_seed(0)
    weights, biases, inputs = {}, {}, {}
    for at, spec in enumerate(network.table):
        name, layer = spec.name, network.layer(spec.name)
        shape, outs = layer.weight.shape, len(layer.weight)
        codes = torch.randint(0, 2**precision.w, shape, generator=generator, dtype=torch.uint8)
        scale = (torch.rand(outs, generator=generator) + 0.5).half().float()
        zero = torch.randint(0, 2**precision.w - 1, (outs,), generator=generator).float()
        if not free or (precision.w > HALVED_BITS and precision.a in WEIGHT_BITS):
            zero = torch.full((outs,), 2.0 ** (precision.w - 1))
        elif precision.w <= HALVED_BITS:
            zero += 0.5
        weights[name] = QuantizedWeight(WeightGrid(precision.w, scale, zero), codes)
        biases[name] = torch.rand(outs, generator=generator).half().float()
        if precision.a in WEIGHT_BITS and spec.kind != "embedding":
            halvings = tuple((at + channel) % 5 for channel in range(spec.in_channels)) if spec.channel_steps else ()
            inputs[name] = InputGrid(precision.a, 1 + at / 1024, 1 + at % (2**precision.a - 2), halvings)
    return QuantizedLayers(weights, biases, inputs)


def _fullest(plan: Plan) -> Plan:
    """The plan with a grid of its own for every tensor but those that move values, cut off wherever an activation may
    do so."""
    moved = {op.output: op.inputs[0] for op in plan.ops if op.kind in SAME_GRID}
    tensors: dict[str, PlanTensor] = {}
    for at, (name, tensor) in enumerate(plan.tensors.items()):
        if tensor.grid is None:
            tensors[name] = tensor
            continue
        cut = tensor.grid.bits < BITS or (tensor.cap is not None and np.isfinite(tensor.cap))
        low, high = (LOWEST + 1, HIGHEST - 1) if cut else (LOWEST, HIGHEST)
        scale, zero = 1 + at / 4096, LOWEST + 1 + at % 254
        if name in moved and (source := tensors[moved[name]].grid) is not None:
            scale, zero = source.scale, source.zero
        tensors[name] = replace(tensor, grid=Grid(scale, zero, low, high, tensor.grid.bits))
    return replace(plan, tensors=tensors)
