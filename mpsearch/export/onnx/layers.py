"""Layers in ONNX: Conv and Gemm between DequantizeLinear nodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpsearch.export.onnx.forms import Form, weight_of
from mpsearch.export.onnx.graph import Graph, shape_of
from mpsearch.export.plan.records import Op


def layer(graph: Graph, op: Op, form: Form) -> str:
    """A layer on real numbers behind DequantizeLinear; what it gives, real numbers."""
    weight = weight_of(op)
    (x,) = (graph.names[name] for name in op.inputs)
    if op.kind == "embedding":
        return graph.node("Gather", [form.real_weight(graph, op), x], op.output, axis=0)
    if weight.steps is not None and op.kind != "transposed":
        grid = graph.plan.tensors[op.inputs[0]].grid
        assert grid is not None
        w, b = form.dequantized(graph, op, grid.scale)
    else:
        w, b = form.real_weight(graph, op), form.real_bias(graph, op)
    if op.kind == "linear":
        return _linear(graph, op, x, w, b)
    settings = op.settings
    pads = [before for before, _ in settings["pads"]] + [behind for _, behind in settings["pads"]]
    given = {"strides": settings["stride"], "dilations": settings["dilation"], "pads": pads}
    # What is the default need not be stored.
    attributes = {key: value for key, value in given.items() if any(size != (key != "pads") for size in value)}
    if settings["groups"] > 1:
        attributes["group"] = settings["groups"]
    if op.kind == "conv":
        return graph.node("Conv", [x, w, b], op.output, **attributes)
    return _transposed(graph, op, [x, w, b], attributes)


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
    shape, groups = weight_of(op).values.shape, op.settings["groups"]
    per = [groups, shape[0] // groups, *shape[1:]]
    order = [0, 2, 1, *range(3, len(per))]
    flat = [groups * shape[1], shape[0] // groups, *shape[2:]]
    w = graph.node("Reshape", [w, graph.constant(np.array(per, np.int64), "shape")], f"{op.name}.by_group")
    w = graph.node("Transpose", [w], f"{op.name}.swapped", perm=order)
    w = graph.node("Reshape", [w, graph.constant(np.array(flat, np.int64), "shape")], f"{op.name}.laid_out")
    return graph.node("ConvTranspose", [x, w, b], op.output, output_padding=op.settings["output_padding"], **attributes)
