"""Layers in ONNX: Conv and Gemm between DequantizeLinear nodes, weights in the form that they are stored in.

Codes of 2, 3 and 4 bits are stored as UINT2 or UINT4, and become int8 with zero-point 0 by Cast and Sub, which a
runtime folds when it loads the file; DequantizeLinear directly on them would leave the layer in float arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.export.onnx.graph import Graph, shape_of
from mpsearch.export.plan.records import Op, Weight
from mpsearch.export.plan.weights import is_halved

UINT2_BITS, UINT4_BITS = 2, 4
Form = Callable[[Graph, Op, bool], str]  # int8 codes (O, …), or real weights, of a layer


def stored_codes(graph: Graph, op: Op, as_real: bool) -> str:
    """The layer's weight from codes at the narrowest type that ONNX has for them: int8 with zero-point 0, or real."""
    from onnx import TensorProto

    weight = _weight(op)
    bits, codes = weight.stored.grid.bits, weight.stored.codes.cpu().numpy()
    zero = weight.stored.grid.zero_point.cpu().numpy().astype(np.float32)
    scale = weight.stored.grid.scale.cpu().numpy().astype(np.float32)
    name = op.name
    if not as_real and (bits > UINT4_BITS or not weight.exact):
        return graph.constant(weight.codes, f"{name}.codes")
    if bits > UINT4_BITS:
        source = graph.constant(codes, f"{name}.codes", np.uint8)
    else:
        width = UINT2_BITS if bits <= UINT2_BITS else UINT4_BITS
        kind = TensorProto.UINT2 if width == UINT2_BITS else TensorProto.UINT4
        source = graph.packed(packed_low_first(codes, width), kind, codes.shape, f"{name}.codes")
    numbers = graph.node("Cast", [source], f"{name}.numbers", to=TensorProto.FLOAT)
    centred = graph.node("Sub", [numbers, graph.constant(_column(zero, codes.ndim), f"{name}.zero")], f"{name}.centred")
    if as_real:
        steps = graph.constant(_column(scale, codes.ndim), f"{name}.scale")
        return graph.node("Mul", [centred, steps], f"{name}.weight")
    if is_halved(weight.stored):
        centred = graph.node("Mul", [centred, graph.constant(np.float32(2), "two")], f"{name}.doubled")
    return graph.node("Cast", [centred], f"{name}.int8", to=TensorProto.INT8)


def packed_low_first(codes: NDArray[np.uint8], width: int) -> bytes:
    """Codes in fields of 2 or 4 bits, the first one in the lowest bits of a byte, as ONNX stores them."""
    count = 8 // width
    flat = np.pad(codes.ravel(), (0, -codes.size % count)).reshape(-1, count)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(flat << np.arange(0, 8, width, dtype=np.uint8), axis=1)
    return packed.astype(np.uint8).tobytes()


def layer(graph: Graph, op: Op, form: Form) -> str:
    """A layer on real numbers behind DequantizeLinear; what it gives, real numbers."""
    weight = _weight(op)
    (x,) = (graph.names[name] for name in op.inputs)
    if op.kind == "embedding":
        return graph.node("Gather", [form(graph, op, True), x], op.output, axis=0)
    integer = weight.steps is not None and op.kind != "transposed"
    w = _dequantized(graph, op, form) if integer else form(graph, op, True)
    b = _bias_steps(graph, op) if integer else graph.constant(weight.bias, f"{op.name}.bias")
    if op.kind == "linear":
        return _linear(graph, op, x, w, b)
    settings = op.settings
    pads = [before for before, _ in settings["pads"]] + [behind for _, behind in settings["pads"]]
    attributes = {"strides": settings["stride"], "dilations": settings["dilation"], "group": settings["groups"]}
    if op.kind == "conv":
        return graph.node("Conv", [x, w, b], op.output, pads=pads, **attributes)
    return _transposed(graph, op, [x, w, b], {**attributes, "pads": pads})


def _weight(op: Op) -> Weight:
    assert op.weight is not None
    return op.weight


def _column(values: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    return values.reshape(-1, *(1,) * (dimensions - 1))


def _dequantized(graph: Graph, op: Op, form: Form) -> str:
    weight = _weight(op)
    scale = graph.constant(weight.scale, f"{op.name}.scale")
    zeros = graph.constant(np.zeros(len(weight.scale), np.int8), "no_zero")
    return graph.node("DequantizeLinear", [form(graph, op, False), scale, zeros], f"{op.name}.weight", axis=0)


def _bias_steps(graph: Graph, op: Op) -> str:
    weight, grid = _weight(op), graph.plan.tensors[op.inputs[0]].grid
    assert grid is not None
    assert weight.steps is not None
    steps = graph.constant((np.float32(grid.scale) * weight.scale).astype(np.float32), f"{op.name}.step")
    zeros = graph.constant(np.zeros(len(weight.scale), np.int32), "no_bias_zero")
    codes = graph.constant(weight.steps, f"{op.name}.bias")
    return graph.node("DequantizeLinear", [codes, steps, zeros], f"{op.name}.bias_dq", axis=0)


def _linear(graph: Graph, op: Op, x: str, w: str, b: str) -> str:
    """A linear map of the last axis: Gemm, on rows where there are more axes."""
    source, result = graph.plan.tensors[op.inputs[0]], graph.plan.tensors[op.output]
    if len(source.shape) == 2:
        return graph.node("Gemm", [x, w, b], op.output, transB=1)
    rows = graph.node(
        "Reshape", [x, graph.constant(np.array([-1, source.shape[-1]], np.int64), "rows")], f"{op.output}.rows"
    )
    if source.grid is not None:
        rows = graph.on_grid(rows, source.grid, f"{op.output}.rows")
    product = graph.node("Gemm", [rows, w, b], f"{op.output}.product", transB=1)
    if result.grid is not None:
        product = graph.on_grid(product, result.grid, f"{op.output}.product")
    return graph.node("Reshape", [product, graph.constant(shape_of(result.shape), "shape")], op.output)


def _transposed(graph: Graph, op: Op, inputs: list[str], attributes: dict[str, Any]) -> str:
    """ONNX lays the weight out as (I, O / G, *kernel), and ours is (O, I / G, *kernel)."""
    x, w, b = inputs
    shape, groups = _weight(op).codes.shape, op.settings["groups"]
    per = [groups, shape[0] // groups, *shape[1:]]
    order = [0, 2, 1, *range(3, len(per))]
    flat = [groups * shape[1], shape[0] // groups, *shape[2:]]
    w = graph.node("Reshape", [w, graph.constant(np.array(per, np.int64), "shape")], f"{op.name}.by_group")
    w = graph.node("Transpose", [w], f"{op.name}.swapped", perm=order)
    w = graph.node("Reshape", [w, graph.constant(np.array(flat, np.int64), "shape")], f"{op.name}.laid_out")
    return graph.node("ConvTranspose", [x, w, b], op.output, output_padding=op.settings["output_padding"], **attributes)
