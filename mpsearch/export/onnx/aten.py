"""ATen operations that have no integer form, in ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hwmodel.errors import InputError
from mpsearch.export.onnx.graph import Graph, shape_of
from mpsearch.export.plan.records import Op, Ref
from recon.graph.nodes import aten

Arguments = dict[str, Any]


def translate(graph: Graph, op: Op) -> str:
    """An ATen operation as ONNX nodes. Raises InputError where there is no translation of it."""
    target = op.settings["target"]
    packet = getattr(target, "overloadpacket", target)
    given = _arguments(op)
    if packet in _UNARY:
        kind, attributes = _UNARY[packet]
        return graph.node(kind, [_value(graph, given["self"])], op.output, **attributes(given))
    if packet in _BINARY:
        return _binary(graph, op, _BINARY[packet], given)
    if packet not in _TRANSLATIONS:
        raise InputError(
            f"{op.name}: there is no ONNX form of {packet} here; replace it in the model, or export --format pt2e"
        )
    return _TRANSLATIONS[packet](graph, op, given)


def _arguments(op: Op) -> Arguments:
    schema = getattr(op.settings["target"], "_schema", None)
    if schema is None:
        return {}
    given = dict(zip([argument.name for argument in schema.arguments], op.settings["args"], strict=False))
    defaults = {argument.name: argument.default_value for argument in schema.arguments}
    return {**defaults, **given, **op.settings["kwargs"]}


def _value(graph: Graph, part: Any) -> str:
    """A tensor, a constant or a number as the graph's name of it."""
    if isinstance(part, Ref):
        return graph.names[part.name] if part.name in graph.names else graph.plan_constant(part.name)
    return graph.constant(np.float32(part), "number")


def _binary(graph: Graph, op: Op, kind: str, given: Arguments) -> str:
    left, right = _value(graph, given["self"]), _value(graph, given["other"])
    if given.get("alpha", 1) != 1:
        right = graph.node("Mul", [right, graph.constant(np.float32(given["alpha"]), "alpha")], f"{op.output}.scaled")
    return graph.node(kind, [left, right], op.output)


def _none(given: Arguments) -> Arguments:
    return {}


_UNARY: dict[Any, tuple[str, Callable[[Arguments], Arguments]]] = {
    aten.sigmoid: ("Sigmoid", _none),
    aten.relu: ("Relu", _none),
    aten.hardswish: ("HardSwish", _none),
    aten.hardsigmoid: ("HardSigmoid", lambda given: {"alpha": 1 / 6, "beta": 0.5}),
    aten.gelu: ("Gelu", lambda given: {"approximate": given["approximate"]}),
    aten.tanh: ("Tanh", _none),
    aten.elu: ("Elu", lambda given: {"alpha": float(given["alpha"])}),
    aten.leaky_relu: ("LeakyRelu", lambda given: {"alpha": float(given["negative_slope"])}),
    aten.mish: ("Mish", _none),
    aten.softplus: ("Softplus", _none),
    aten.exp: ("Exp", _none),
    aten.abs: ("Abs", _none),
    aten.sqrt: ("Sqrt", _none),
    aten.neg: ("Neg", _none),
    aten.softmax: ("Softmax", lambda given: {"axis": given["dim"]}),
    aten._softmax: ("Softmax", lambda given: {"axis": given["dim"]}),
    aten.log_softmax: ("LogSoftmax", lambda given: {"axis": given["dim"]}),
}
_BINARY = {
    aten.add: "Add", aten.sub: "Sub", aten.mul: "Mul", aten.div: "Div", aten.matmul: "MatMul", aten.maximum: "Max",
    aten.minimum: "Min",
}  # fmt: skip


def _silu(graph: Graph, op: Op, given: Arguments) -> str:
    x = _value(graph, given["self"])
    return graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{op.output}.sigmoid")], op.output)


def _clamp(graph: Graph, op: Op, given: Arguments) -> str:
    low, high = (given.get(f"{end}_val", given.get(end)) for end in ("min", "max"))
    ends = ["" if end is None else graph.constant(np.float32(end), "end") for end in (low, high)]
    return graph.node("Clip", [_value(graph, given["self"]), *ends], op.output)


def _power(graph: Graph, op: Op, given: Arguments) -> str:
    return graph.node("Pow", [_value(graph, given["self"]), _value(graph, given["exponent"])], op.output)


def _square(graph: Graph, op: Op, given: Arguments) -> str:
    x = _value(graph, given["self"])
    return graph.node("Mul", [x, x], op.output)


def _rsqrt(graph: Graph, op: Op, given: Arguments) -> str:
    root = graph.node("Sqrt", [_value(graph, given["self"])], f"{op.output}.root")
    return graph.node("Reciprocal", [root], op.output)


def _layer_norm(graph: Graph, op: Op, given: Arguments) -> str:
    shape = given["normalized_shape"]
    scale = given["weight"]
    parts = [_value(graph, given["input"])]
    parts.append(graph.constant(np.ones(shape, np.float32), "ones") if scale is None else _value(graph, scale))
    if given["bias"] is not None:
        parts.append(_value(graph, given["bias"]))
    return graph.node("LayerNormalization", parts, op.output, axis=-len(shape), epsilon=float(given["eps"]))


def _group_norm(graph: Graph, op: Op, given: Arguments) -> str:
    x = given["input"]
    channels = graph.plan.tensors[x.name].shape[1]
    scale, bias = given["weight"], given["bias"]
    parts = [
        _value(graph, x),
        graph.constant(np.ones(channels, np.float32), "ones") if scale is None else _value(graph, scale),
        graph.constant(np.zeros(channels, np.float32), "zeros") if bias is None else _value(graph, bias),
    ]
    return graph.node("GroupNormalization", parts, op.output, num_groups=given["num_groups"], epsilon=given["eps"])


def _batch_norm(graph: Graph, op: Op, given: Arguments) -> str:
    channels = graph.plan.tensors[given["input"].name].shape[1]
    fill = {"weight": np.ones, "bias": np.zeros}
    parts = [_value(graph, given["input"])]
    for key in ("weight", "bias"):
        there = given[key] is not None
        parts.append(_value(graph, given[key]) if there else graph.constant(fill[key](channels, np.float32), key))
    parts += [_value(graph, given["running_mean"]), _value(graph, given["running_var"])]
    return graph.node("BatchNormalization", parts, op.output, epsilon=float(given["eps"]))


def _pad(graph: Graph, op: Op, given: Arguments) -> str:
    rank = len(graph.plan.tensors[op.output].shape)
    pairs = list(zip(given["pad"][::2], given["pad"][1::2], strict=True))[::-1]
    pairs = [(0, 0)] * (rank - len(pairs)) + pairs
    pads = [before for before, _ in pairs] + [behind for _, behind in pairs]
    value = graph.constant(np.float32(given["value"] or 0), "number")
    return graph.node(
        "Pad", [_value(graph, given["self"]), graph.constant(np.array(pads, np.int64), "pads"), value], op.output
    )


def _bilinear(graph: Graph, op: Op, given: Arguments) -> str:
    shape, source = graph.plan.tensors[op.output].shape, graph.plan.tensors[given["input"].name].shape
    factors = [1.0, 1.0, *(out / size for out, size in zip(shape[2:], source[2:], strict=True))]
    mode = "align_corners" if given["align_corners"] else "half_pixel"
    scales = graph.constant(np.array(factors, np.float32), "factors")
    parts = [_value(graph, given["input"]), "", scales]
    return graph.node("Resize", parts, op.output, mode="linear", coordinate_transformation_mode=mode)


def _attention(graph: Graph, op: Op, given: Arguments) -> str:
    """softmax(q · kᵀ / √d) · v, with a mask that is added."""
    query, key, value = (_value(graph, given[name]) for name in ("query", "key", "value"))
    if given["is_causal"] or given.get("enable_gqa"):
        raise InputError(f"{op.name}: causal attention has no ONNX form here; write it with a mask")
    shape = graph.plan.tensors[given["query"].name].shape
    scale = given["scale"] if given["scale"] is not None else 1 / math.sqrt(shape[-1])
    order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    turned = graph.node("Transpose", [key], f"{op.output}.turned", perm=order)
    scores = graph.node("MatMul", [query, turned], f"{op.output}.scores")
    scores = graph.node("Mul", [scores, graph.constant(np.float32(scale), "number")], f"{op.output}.scaled")
    if given["attn_mask"] is not None:
        scores = graph.node("Add", [scores, _value(graph, given["attn_mask"])], f"{op.output}.masked")
    shares = graph.node("Softmax", [scores], f"{op.output}.shares", axis=-1)
    return graph.node("MatMul", [shares, value], op.output)


def _reduced(graph: Graph, op: Op, given: Arguments) -> str:
    kind = _REDUCTIONS[op.settings["target"].overloadpacket]
    axes = graph.constant(np.array(given["dim"], np.int64), "axes")
    return graph.node(kind, [_value(graph, given["self"]), axes], op.output, keepdims=int(given["keepdim"]))


def _concat(graph: Graph, op: Op, given: Arguments) -> str:
    return graph.node("Concat", [_value(graph, part) for part in given["tensors"]], op.output, axis=given["dim"])


def _select(graph: Graph, op: Op, given: Arguments) -> str:
    index = graph.constant(np.int64(given["index"]), "index")
    return graph.node("Gather", [_value(graph, given["self"]), index], op.output, axis=given["dim"])


def _expand(graph: Graph, op: Op, given: Arguments) -> str:
    """An axis that grows with the samples is as long as it is."""
    sizes = np.array([1 if size < 0 else size for size in graph.plan.tensors[op.output].shape], np.int64)
    return graph.node("Expand", [_value(graph, given["self"]), graph.constant(sizes, "sizes")], op.output)


def _roll(graph: Graph, op: Op, given: Arguments) -> str:
    x = _value(graph, given["self"])
    for shift, axis in zip(given["shifts"], given["dims"], strict=True):
        at = graph.constant(np.array([axis], np.int64), "axis")
        ends = [graph.constant(np.array([end], np.int64), "end") for end in (-shift, 2**62, 0)]
        tail = graph.node("Slice", [x, ends[0], ends[1], at], f"{op.output}.tail")
        head = graph.node("Slice", [x, ends[2], ends[0], at], f"{op.output}.head")
        x = graph.node("Concat", [tail, head], op.output, axis=axis)
    return x


def _reshape(graph: Graph, op: Op, given: Arguments) -> str:
    shape = graph.plan.tensors[op.output].shape
    return graph.node("Reshape", [_value(graph, given["self"]), graph.constant(shape_of(shape), "shape")], op.output)


_REDUCTIONS = {aten.mean: "ReduceMean", aten.sum: "ReduceSum", aten.amax: "ReduceMax", aten.amin: "ReduceMin"}
_TRANSLATIONS: dict[Any, Callable[[Graph, Op, Arguments], str]] = {
    aten.silu: _silu,
    **dict.fromkeys((aten.clamp, aten.hardtanh, aten.clamp_min, aten.clamp_max), _clamp),
    aten.pow: _power,
    aten.square: _square,
    aten.rsqrt: _rsqrt,
    aten.layer_norm: _layer_norm,
    aten.group_norm: _group_norm,
    aten.batch_norm: _batch_norm,
    **dict.fromkeys((aten.constant_pad_nd, aten.pad), _pad),
    aten.upsample_bilinear2d: _bilinear,
    aten.scaled_dot_product_attention: _attention,
    **dict.fromkeys(_REDUCTIONS, _reduced),
    aten.cat: _concat,
    aten.select: _select,
    aten.expand: _expand,
    aten.roll: _roll,
    aten.reshape: _reshape,
}
