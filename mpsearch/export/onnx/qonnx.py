"""QONNX: the network on real numbers with Quant nodes, which hold any bits and any zero-point, halves among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpsearch.export.onnx.forms import CastForm, column, weight_of
from mpsearch.export.onnx.graph import Graph
from mpsearch.export.onnx.write import as_model, write_graph
from mpsearch.export.plan.records import LOWEST, Grid, Op, Plan

DOMAIN, VERSION = "qonnx.custom_op.general", 2
OPSET, IR_VERSION = 20, 10


class QuantForm(CastForm):
    """Real weights behind a Quant node with a scale and a zero-point for each output channel."""

    def real_weight(self, graph: Graph, op: Op) -> str:
        weight = weight_of(op)
        values = graph.constant(weight.values, f"{op.name}.weight")
        if weight.stored is None:
            return values
        grid, rank = weight.stored.grid, weight.values.ndim
        scale, zero = (column(part.cpu().numpy(), rank) for part in (grid.scale, grid.zero_point))
        return _quant(graph, values, scale, zero, grid.bits, f"{op.name}.quantized")


class QuantGraph(Graph):
    """A graph that rounds tensors by Quant nodes."""

    integers = False

    def on_grid(self, x: str, grid: Grid, name: str) -> str:
        low, high = LOWEST, LOWEST + 2**grid.bits - 1
        if (grid.low, grid.high) != (low, high):
            ends = [np.float32((end - grid.zero) * grid.scale) for end in (grid.low, grid.high)]
            x = self.node("Clip", [x, *(self.constant(end, f"{name}.end") for end in ends)], f"{name}.clipped")
        return _quant(self, x, grid.scale, grid.zero - LOWEST, grid.bits, f"{name}.quantized")


def _quant(graph: Graph, x: str, scale: Any, zero: Any, bits: int, name: str) -> str:
    """A Quant node: unsigned codes of so many bits, rounded half to even."""
    parts = [
        graph.constant(scale, f"{name}.scale", np.float32),
        graph.constant(zero, f"{name}.zero", np.float32),
        graph.constant(np.float32(bits), "bits"),
    ]
    return graph.node("Quant", [x, *parts], name, domain=DOMAIN, signed=0, narrow=0, rounding_mode="ROUND")


def write_qonnx(plan: Plan, metadata: Mapping[str, str], dtypes: tuple[np.dtype[Any], ...]) -> Any:
    """The ModelProto of a simulated plan, for one sample. Raises InputError where an operation has no ONNX form."""
    graph = write_graph(plan, QuantForm(), QuantGraph(plan))
    return as_model(graph, metadata, dtypes, OPSET, IR_VERSION, batch=1, domains=[(DOMAIN, VERSION)])
