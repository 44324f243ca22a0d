"""What is no layer, in ONNX: sums, products, pooling, views, functions of one value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpsearch.export.onnx.aten import translate
from mpsearch.export.onnx.graph import Graph, shape_of
from mpsearch.export.plan.records import Op
from recon.graph.nodes import aten


def operation(graph: Graph, op: Op) -> str:
    """Any operation but a layer on real numbers behind DequantizeLinear; what it gives, real numbers."""
    found = _WRITERS.get(op.kind)
    return translate(graph, op) if found is None else found(graph, op, [graph.names[name] for name in op.inputs])


def _sum_or_product(graph: Graph, op: Op, read: list[str]) -> str:
    return graph.node("Add" if op.kind == "add" else "Mul", read, op.output)


def _concat(graph: Graph, op: Op, read: list[str]) -> str:
    return graph.node("Concat", read, op.output, axis=op.settings["axis"])


def _rescale(graph: Graph, op: Op, read: list[str]) -> str:
    return read[0]


def _mean(graph: Graph, op: Op, read: list[str]) -> str:
    shape = graph.plan.tensors[op.inputs[0]].shape
    if len(shape) < 3 or op.settings["axes"] != tuple(range(2, len(shape))):
        axes = graph.constant(np.array(op.settings["axes"], np.int64), "axes")
        return graph.node("ReduceMean", [read[0], axes], op.output, keepdims=int(op.settings["keepdim"]))
    pooled = graph.node("GlobalAveragePool", read, op.output)
    if op.settings["keepdim"]:
        return pooled
    grid = graph.plan.tensors[op.output].grid
    if grid is not None:
        pooled = graph.on_grid(pooled, grid, f"{op.output}.map")
    return graph.node("Flatten", [pooled], f"{op.output}.flat", axis=1)


def _pool(graph: Graph, op: Op, read: list[str]) -> str:
    settings = op.settings
    pads = [before for before, _ in settings["pads"]] + [behind for _, behind in settings["pads"]]
    shape = {"kernel_shape": settings["kernel"], "strides": settings["stride"], "pads": pads}
    if op.kind == "avgpool":
        return graph.node("AveragePool", read, op.output, **shape)
    return graph.node("MaxPool", read, op.output, dilations=settings["dilation"], **shape)


def _reshape(graph: Graph, op: Op, read: list[str]) -> str:
    shape = graph.plan.tensors[op.output].shape
    if len(shape) == 2 and shape[0] < 0 < shape[1]:
        return graph.node("Flatten", read, op.output, axis=1)
    return graph.node("Reshape", [*read, graph.constant(shape_of(shape), "shape")], op.output)


def _permute(graph: Graph, op: Op, read: list[str]) -> str:
    return graph.node("Transpose", read, op.output, perm=op.settings["order"])


def _slice(graph: Graph, op: Op, read: list[str]) -> str:
    settings = op.settings
    numbers = [settings[key] for key in ("start", "stop", "axis", "step")]
    return graph.node("Slice", [*read, *(graph.constant(np.array([n], np.int64), f"n{n}") for n in numbers)], op.output)


def _nearest(graph: Graph, op: Op, read: list[str]) -> str:
    factors = graph.constant(np.array([1, 1, *op.settings["factors"]], np.float32), "factors")
    modes: dict[str, Any] = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return graph.node("Resize", [*read, "", factors], op.output, mode="nearest", **modes)


def _table(graph: Graph, op: Op, read: list[str]) -> str:
    """SiLU and HardSwish of integers are two integer kernels; other functions are computed on real numbers."""
    if graph.integers and graph.plan.is_integer(op):
        packet = op.settings["target"].overloadpacket
        if packet is aten.silu:
            return graph.silu(read[0], op.output)
        if packet is aten.hardswish:
            return graph.hardswish(read[0], op.output)
    return translate(graph, op)


_WRITERS: dict[str, Callable[[Graph, Op, list[str]], str]] = {
    "add": _sum_or_product,
    "mul": _sum_or_product,
    "concat": _concat,
    "rescale": _rescale,
    "mean": _mean,
    "maxpool": _pool,
    "avgpool": _pool,
    "reshape": _reshape,
    "permute": _permute,
    "slice": _slice,
    "nearest": _nearest,
    "table": _table,
}
