"""A low-bit network as a float ONNX model: real numbers on its grids, under the names of the network's layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpsearch.export.onnx.forms import CastForm
from mpsearch.export.onnx.graph import Graph
from mpsearch.export.onnx.write import IR_VERSION, OPSET, as_model, write_graph
from mpsearch.export.plan.records import Op, Plan, Weight


@dataclass(frozen=True, slots=True, eq=False)
class RealModel:
    """The `model` (a ModelProto), and its names of the plan's `tensors` and of the `weights` of layers."""

    model: Any
    tensors: Mapping[str, str]
    weights: Mapping[str, str]


def write_real(plan: Plan, metadata: Mapping[str, str], dtypes: tuple[np.dtype[Any], ...]) -> RealModel:
    """The plan in float arithmetic, without any quantization node: weights are what their codes stand for.

    `dtypes` are those of the inputs, `metadata` texts that the file carries. Raises InputError where an operation has
    no ONNX form.
    """
    ops = tuple(op if op.weight is None else replace(op, weight=_real(op.weight)) for op in plan.ops)
    tensors = {name: replace(tensor, grid=None) for name, tensor in plan.tensors.items()}
    form = _NamedForm()
    graph = write_graph(replace(plan, ops=ops, tensors=tensors), form)
    names = dict(graph.names)
    return RealModel(as_model(graph, metadata, dtypes, OPSET, IR_VERSION), names, form.names)


def _real(weight: Weight) -> Weight:
    return replace(weight, stored=None, steps=None)


class _NamedForm(CastForm):
    """Real weights, under names that are kept."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def real_weight(self, graph: Graph, op: Op) -> str:
        self.names[op.name] = super().real_weight(graph, op)
        return self.names[op.name]
