"""An integer plan as an ONNX model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpsearch.export.onnx.forms import CastForm, Form
from mpsearch.export.onnx.graph import Graph
from mpsearch.export.onnx.layers import layer
from mpsearch.export.onnx.operations import operation
from mpsearch.export.onnx.packed import DOMAIN, PackedForm, PackedGraph, functions
from mpsearch.export.plan.records import LAYERS, SAME_GRID, VIEWS, Plan, Tensor

OPSET, IR_VERSION = 21, 10
OPSET_UINT2, IR_UINT2 = 25, 13
PRODUCER, FILLING = "mpsearch", "mpsearch.filling"


def write_onnx(plan: Plan, metadata: Mapping[str, str], dtypes: tuple[np.dtype[Any], ...], packed: bool = False) -> Any:
    """The ModelProto of a plan, weights as int8, UINT4 and UINT2 initialisers, or `packed` without gaps.

    `dtypes` are those of the inputs, `metadata` texts that the file carries. Raises InputError where an operation has
    no ONNX form.
    """
    from onnx import TensorProto

    if packed:
        graph = write_graph(plan, PackedForm(), PackedGraph(plan))
        return as_model(graph, metadata, dtypes, OPSET, IR_VERSION, short=True)
    graph = write_graph(plan, CastForm())
    narrow = any(tensor.data_type == TensorProto.UINT2 for tensor in graph.initializers.values())
    opset, version = (OPSET_UINT2, IR_UINT2) if narrow else (OPSET, IR_VERSION)
    return as_model(graph, metadata, dtypes, opset, version)


def write_graph(plan: Plan, form: Form, graph: Graph | None = None) -> Graph:
    """The nodes of a plan, weights in the given form, added to a graph where one is given."""
    graph = graph or Graph(plan)
    moved = _moved_only(plan) | _rounded_later(plan)
    for name in plan.inputs:
        graph.names[name] = name if name in moved else _finished(graph, plan.tensors[name], name)
    for op in plan.ops:
        result = layer(graph, op, form) if op.kind in LAYERS else operation(graph, op)
        graph.names[op.output] = result if op.output in moved else _finished(graph, plan.tensors[op.output], result)
    return graph


def _moved_only(plan: Plan) -> set[str]:
    """Tensors on the grid of what they were moved from, which are rounded to another grid and not read otherwise.

    They need no rounding of their own, and onnxruntime makes float layers of what reads two pairs of Q and DQ in a row.
    """
    readers = plan.readers()
    kinds = {op.output: op.kind for op in plan.ops}
    return {
        name
        for name, found in readers.items()
        if [op.kind for op in found] == ["rescale"] and kinds.get(name) in SAME_GRID and name not in plan.outputs
    }


def _rounded_later(plan: Plan) -> set[str]:
    """Inputs, and parts of them, of which all that is read is moved or joined and on the same grid then: these are
    rounded in one go, and onnxruntime has a kernel for space to depth on real numbers."""
    readers, later = plan.readers(), set(plan.inputs)
    writers = {op.output: op for op in plan.ops}
    for name in (*plan.inputs, *writers):
        if name in plan.inputs or (writers[name].kind in VIEWS and later.issuperset(writers[name].inputs)):
            grid = plan.tensors[name].grid
            found = [(op.kind in (*VIEWS, "concat"), plan.tensors[op.output].grid == grid) for op in readers[name]]
            if grid is not None and found and all(map(all, found)) and name not in plan.outputs:
                later.add(name)
                continue
        later.discard(name)
    joined = [op for op in plan.ops if op.kind == "concat" and later.intersection(op.inputs)]
    return later if all(later.issuperset(op.inputs) for op in joined) else set()


def _finished(graph: Graph, tensor: Tensor, value: str) -> str:
    """Behind ReLU, where the operation ends in one, and on the tensor's grid, where it has one."""
    if tensor.grid is not None:
        return graph.on_grid(value, tensor.grid, tensor.name)
    if tensor.cap is None:
        return value
    if np.isinf(tensor.cap):
        return graph.node("Relu", [value], f"{tensor.name}.relu")
    ends = [graph.constant(np.float32(end), "end") for end in (0, tensor.cap)]
    return graph.node("Clip", [value, *ends], f"{tensor.name}.relu")


def as_model(
    graph: Graph,
    metadata: Mapping[str, str],
    dtypes: tuple[np.dtype[Any], ...],
    opset: int,
    version: int,
    short: bool = False,
    batch: str | int = "N",
    domains: Sequence[tuple[str, int]] = (),
) -> Any:
    """The ModelProto of a graph: outputs under the names of the network's, nodes that nothing reads left out.

    Where `short`, what is neither input nor output is called as briefly as can be. `batch` is how many samples there
    are, `domains` where operations are from beside ONNX itself.
    """
    from onnx import helper

    plan = graph.plan
    kinds = [helper.np_dtype_to_tensor_dtype(dtype) for dtype in dtypes]
    inputs = [
        helper.make_tensor_value_info(name, kind, _shape(plan.tensors[name], batch))
        for name, kind in zip(plan.inputs, kinds, strict=True)
    ]
    outputs = []
    for name, path in zip(plan.outputs, plan.names, strict=True):
        shown = graph.node("Identity", [graph.names[name]], path or "output")
        outputs.append(
            helper.make_tensor_value_info(
                shown, helper.np_dtype_to_tensor_dtype(np.dtype(np.float32)), _shape(plan.tensors[name], batch)
            )
        )
    _drop_unread(graph, {output.name for output in outputs})
    read = {name for node in graph.nodes for name in node.input}
    initializers = [tensor for name, tensor in graph.initializers.items() if name in read]
    if short:
        _shorten(graph.nodes, initializers, {value.name for value in (*inputs, *outputs)})
    defined = functions(graph, opset)
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(DOMAIN, 1)] if defined else [])]
    imports += [helper.make_opsetid(*domain) for domain in domains]
    made = helper.make_graph(graph.nodes, "network", inputs, outputs, initializers)
    model = helper.make_model(
        made, functions=defined, opset_imports=imports, ir_version=version, producer_name=PRODUCER
    )
    helper.set_model_props(model, dict(metadata))
    return model


def fill_up(model: Any, size: int) -> None:
    """Makes a model as large as `size` bytes by metadata that say nothing, where that is larger by enough for these."""
    first, *more = (f"{FILLING}{dots}" for dots in ("", ".", ".."))
    entry = model.metadata_props.add(key=first)
    for key in (None, *more):  # lengths of lengths leave out some of the sizes that one text can make a file have
        if key is not None:
            model.metadata_props.add(key=key)
        entry.value = ""
        entry.value = max(size - model.ByteSize(), 0) * " "
        while entry.value and model.ByteSize() > size:
            entry.value = entry.value[:-1]
        if model.ByteSize() == size:
            return
    del model.metadata_props[-len(more) - 1 :]


def _shape(tensor: Tensor, batch: str | int) -> list[str | int]:
    if isinstance(batch, int):
        return [-size * batch if size < 0 else size for size in tensor.shape]
    return [batch if size == -1 else f"{-size}{batch}" if size < 0 else size for size in tensor.shape]


def _drop_unread(graph: Graph, live: set[str]) -> None:
    kept = []
    for node in reversed(graph.nodes):
        if live.intersection(node.output):
            kept.append(node)
            live |= set(node.input)
    graph.nodes = kept[::-1]


def _shorten(nodes: list[Any], initializers: list[Any], kept: set[str]) -> None:
    names: dict[str, str] = {}

    def short(name: str) -> str:
        return name if name in kept or not name else names.setdefault(name, f"t{len(names):x}")

    for tensor in initializers:
        tensor.name = short(tensor.name)
    for node in nodes:
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
