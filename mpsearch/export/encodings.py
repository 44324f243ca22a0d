"""Quantization encodings for AIMET and Qualcomm's QNN, beside a float ONNX model.

Source: AIMET's Encoding Format Specification, versions 1.0.0 and 2.0.0. Both say which grid every weight and tensor of
the model is on; 2.0.0 has types of 2, 4, 8 and 16 bits alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.export.plan.records import LOWEST, VIEWS, Grid, Plan
from mpsearch.export.plan.weights import is_halved
from recon.quantizers.weights import QuantizedWeight

VERSIONS = ("1.0.0", "2.0.0")
TYPES = (2, 4, 8, 16)  # bits of the integers that version 2.0.0 knows


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """A tensor called `name` on the grid `scale · (q − zero)`, q from 0 to 2^bits − 1.

    One scale and one whole zero-point, or as many as there are channels along `axis`.
    """

    name: str
    bits: int
    scale: NDArray[np.float32]
    zero: NDArray[np.int64]
    symmetric: bool
    axis: int | None = None


def weight_encoding(name: str, stored: QuantizedWeight) -> Encoding:
    """The grid of a layer's weight; where zero-points count in halves, a grid of half the step that has all of it."""
    grid = stored.grid
    scale = grid.scale.cpu().numpy().astype(np.float32)
    zero = grid.zero_point.cpu().numpy().astype(np.float64)
    bits = grid.bits
    if is_halved(stored):
        zero, scale = 2 * zero, (scale / 2).astype(np.float32)
        bits = (2 * (2**bits - 1)).bit_length()
    whole = zero.astype(np.int64)
    return Encoding(name, bits, scale, whole, bool((whole == 2 ** (bits - 1)).all()), axis=0)


def tensor_encoding(name: str, grid: Grid) -> Encoding:
    """The grid of a tensor; where ReLU cuts codes off, which the graph does, it may have more of them."""
    most = grid.high - LOWEST
    bits = most.bit_length()
    if most != 2**bits - 1:
        bits = next(width for width in TYPES if width >= bits)
    zero = np.array([grid.zero - LOWEST], np.int64)
    return Encoding(name, bits, np.array([grid.scale], np.float32), zero, False)


def encodings_of(
    plan: Plan, tensors: Mapping[str, str], weights: Mapping[str, str]
) -> tuple[list[Encoding], list[Encoding]]:
    """The encodings of the activations and of the weights of `plan`, under the names that a model has for them.

    What only moves values has no encoding of its own. ONNX lays transposed convolutions out in another way than grids
    by output channel: their weights have none either.
    """
    moved = {op.output for op in plan.ops if op.kind in VIEWS}
    grids = {
        tensors[name]: tensor.grid
        for name, tensor in plan.tensors.items()
        if tensor.grid is not None and name not in moved
    }
    known = {
        weights[op.name]: op.weight.stored
        for op in plan.ops
        if op.weight is not None and op.weight.stored is not None and op.kind != "transposed"
    }
    activations = [tensor_encoding(name, grid) for name, grid in grids.items()]
    return activations, [weight_encoding(name, stored) for name, stored in known.items()]


def as_json(activations: list[Encoding], weights: list[Encoding], version: str) -> str:
    """The text of a file of encodings."""
    if version == "1.0.0":
        parts: dict[str, Any] = {
            "version": version,
            "activation_encodings": [_first(one, "PER_TENSOR") for one in activations],
            "param_encodings": [_first(one, "PER_CHANNEL") for one in weights],
        }
    else:
        parts = {"version": version, "encodings": [_second(one) for one in (*activations, *weights)]}
    return json.dumps(parts, indent=1) + "\n"


def _first(one: Encoding, kind: str) -> dict[str, Any]:
    """Version 1.0.0: x ≈ scale · (q + offset), q from 0."""
    return {
        "name": one.name,
        "dtype": "INT",
        "enc_type": kind,
        "bw": one.bits,
        "is_sym": one.symmetric,
        "scale": one.scale.tolist(),
        "offset": (-one.zero).tolist(),
    }


def _second(one: Encoding) -> dict[str, Any]:
    """Version 2.0.0: the inputs and attributes of ONNX's QuantizeLinear."""
    width = next(bits for bits in TYPES if bits >= one.bits)
    scale, zero = one.scale.tolist(), one.zero.tolist()
    if one.axis is None:
        return {"name": one.name, "y_scale": scale[0], "y_zero_point": zero[0], "output_dtype": f"uint{width}"}
    if one.symmetric and width == one.bits:
        return {"name": one.name, "y_scale": scale, "axis": one.axis, "output_dtype": f"int{width}"}
    return {
        "name": one.name,
        "y_scale": scale,
        "y_zero_point": zero,
        "axis": one.axis,
        "output_dtype": f"uint{width}",
    }


def inexpressible(activations: list[Encoding]) -> list[str]:
    """Tensors whose number of bits has no type in version 2.0.0: there they are on more levels than they were."""
    return [one.name for one in activations if one.bits not in TYPES]
