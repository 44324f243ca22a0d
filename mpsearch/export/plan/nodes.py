"""What a node of a captured graph is to an integer runtime: its kind, what it reads, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from mpsearch.export.plan.records import Kind
from recon.graph.layers import Convolution, Embedding, Layer, Linear, TransposedConvolution
from recon.graph.nodes import aten, packet_of

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A node as an operation: its kind, the nodes that it reads in order, and the settings of `records.Op`."""

    kind: Kind
    inputs: tuple[fx.Node, ...]
    settings: dict[str, Any]


_UNARY = (
    aten.sigmoid, aten.silu, aten.hardswish, aten.hardsigmoid, aten.gelu, aten.tanh, aten.elu, aten.leaky_relu,
    aten.mish, aten.softplus, aten.selu, aten.celu, aten.exp, aten.abs, aten.sqrt, aten.rsqrt, aten.neg, aten.square,
    aten.hardtanh, aten.clamp, aten.clamp_min, aten.clamp_max, aten.pow,
)  # fmt: skip
_WITH_NUMBER = (aten.add, aten.sub, aten.mul, aten.div)
_RESHAPES = (aten.reshape, aten.view, aten.flatten, aten.squeeze, aten.unsqueeze)
IDENTITIES = (aten.clone, aten.contiguous, aten.dropout)


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call of an ATen operation by name, defaults among them."""
    schema = node.target._schema  # type: ignore[union-attr]
    names = [argument.name for argument in schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    defaults = {argument.name: argument.default_value for argument in schema.arguments}
    return {name: given.get(name, defaults[name]) for name in names}


def layer_step(layer: Layer, node: fx.Node) -> Step:
    """A call of a layer."""
    source = node.all_input_nodes
    if isinstance(layer, Convolution):
        settings: dict[str, Any] = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
        return Step("conv", tuple(source), {**settings, "pads": tuple(layer.pads())})
    if isinstance(layer, TransposedConvolution):
        pads = tuple((pad, pad) for pad in layer.padding)
        settings = {"stride": layer.stride, "pads": pads, "dilation": layer.dilation, "groups": layer.groups}
        return Step("transposed", tuple(source), {**settings, "output_padding": layer.output_padding})
    assert isinstance(layer, Linear | Embedding)
    return Step("linear" if isinstance(layer, Linear) else "embedding", tuple(source), {})


def step_of(node: fx.Node, constants: set[fx.Node]) -> Step:
    """A call of an ATen operation; what has no integer form is of kind float."""
    found = _READERS.get(packet_of(node), _elementwise)
    try:
        step = found(node, constants)
    except _NotIntegerError:
        step = None
    return float_step(node) if step is None else step


def float_step(node: fx.Node) -> Step:
    """The node as an operation on real numbers."""
    settings = {"target": node.target, "args": node.args, "kwargs": dict(node.kwargs)}
    return Step("float", tuple(node.all_input_nodes), settings)


class _NotIntegerError(Exception):
    """The node has no integer form."""


def _require(holds: bool) -> None:
    if not holds:
        raise _NotIntegerError


def _elementwise(node: fx.Node, constants: set[fx.Node]) -> Step | None:
    """A function of one tensor's values, or a sum or product of two tensors."""
    packet, read = packet_of(node), node.all_input_nodes
    if packet in (*_UNARY, *_WITH_NUMBER) and len(read) == 1 and read[0] not in constants and _plain(node):
        return Step("table", (read[0],), float_step(node).settings)
    if packet in (aten.add, aten.mul) and not node.kwargs and len(node.args) == 2:
        tensors = tuple(arg for arg in node.args if isinstance(arg, fx.Node))
        if len(tensors) == 2 and not constants.intersection(tensors) and all(map(_floating, tensors)):
            return Step("add" if packet is aten.add else "mul", tensors, {})
    return None


def _plain(node: fx.Node) -> bool:
    """The tensor is the first argument or stands there too, and is no count."""
    return all(_floating(source) for source in node.all_input_nodes)


def _floating(node: fx.Node) -> bool:
    return bool(node.meta.get("floating")) and not node.meta.get("counts")


def _sizes(node: fx.Node) -> tuple[int, ...]:
    shape: tuple[int, ...] = node.meta["shape"]
    return shape


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    _require(isinstance(source, fx.Node) and _floating(source) and _floating(node))
    assert isinstance(source, fx.Node)
    return source


def _reshape(node: fx.Node, constants: set[fx.Node]) -> Step:
    source = _source(node)
    _require(sum(size < 0 for size in _sizes(node)) <= 1 and source not in constants)
    return Step("reshape", (source,), {})


def _permute(node: fx.Node, constants: set[fx.Node]) -> Step:
    source = _source(node)
    _require(source not in constants)
    rank = len(_sizes(source))
    if packet_of(node) is aten.permute:
        order = [axis % rank for axis in node.args[1]]  # type: ignore[operator, union-attr]
    else:
        order = list(range(rank))
        given = arguments(node)
        one, other = given["dim0"] % rank, given["dim1"] % rank
        order[one], order[other] = order[other], order[one]
    return Step("permute", (source,), {"order": tuple(order)})


def _slice(node: fx.Node, constants: set[fx.Node]) -> Step:
    source, given = _source(node), arguments(node)
    axis = given["dim"] % len(_sizes(source))
    size = _sizes(source)[axis]
    ends = [0 if given["start"] is None else given["start"], size if given["end"] is None else given["end"]]
    _require(size > 0 and source not in constants and all(isinstance(end, int) for end in ends))
    start, stop = (min(max(end + size if end < 0 else end, 0), size) for end in ends)
    return _sliced(source, axis, start, stop, given["step"])


def _sliced(source: fx.Node, axis: int, start: int, stop: int, step: int = 1) -> Step:
    return Step("slice", (source,), {"axis": axis, "start": start, "stop": stop, "step": step})


def part_step(node: fx.Node, constants: set[fx.Node]) -> Step | None:
    """One part of a split as a slice; None where the node takes something else apart."""
    split, index = node.args
    if not isinstance(split, fx.Node) or packet_of(split) not in (aten.split, aten.split_with_sizes, aten.chunk):
        return None
    source, given = split.args[0], arguments(split)
    if not isinstance(source, fx.Node) or source in constants or not _floating(source):
        return None
    axis = given["dim"] % len(_sizes(source))
    size = _sizes(source)[axis]
    if size < 0 or not isinstance(index, int):
        return None
    if "chunks" in given:
        each = -(-size // given["chunks"])
    elif isinstance(sizes := given.get("split_size", given.get("split_sizes")), int):
        each = sizes
    else:
        assert isinstance(sizes, list | tuple)
        start = sum(sizes[:index])
        return _sliced(source, axis, start, start + sizes[index])
    return _sliced(source, axis, index * each, min((index + 1) * each, size))


def _concat(node: fx.Node, constants: set[fx.Node]) -> Step:
    parts = node.args[0]
    _require(isinstance(parts, list | tuple) and not constants.intersection(node.all_input_nodes))
    assert isinstance(parts, list | tuple)
    _require(all(isinstance(part, fx.Node) and _floating(part) for part in parts))
    axis = arguments(node)["dim"] % len(_sizes(node))
    _require(_sizes(node)[axis] > 0)
    return Step("concat", tuple(parts), {"axis": axis})  # type: ignore[arg-type]


def _mean(node: fx.Node, constants: set[fx.Node]) -> Step:
    source, given = _source(node), arguments(node)
    rank = len(_sizes(source))
    _require(given["dim"] is not None and given["dtype"] is None)
    axes = tuple(sorted(axis % rank for axis in given["dim"]))
    _require(all(_sizes(source)[axis] > 0 for axis in axes))
    return Step("mean", (source,), {"axes": axes, "keepdim": given["keepdim"]})


def _adaptive(node: fx.Node, constants: set[fx.Node]) -> Step:
    source = _source(node)
    sizes, out = _sizes(source)[2:], _sizes(node)[2:]
    if all(size == 1 for size in out):
        return Step("mean", (source,), {"axes": tuple(range(2, 2 + len(out))), "keepdim": True})
    _require(all(size % each == 0 for size, each in zip(sizes, out, strict=True)))
    kernel = tuple(size // each for size, each in zip(sizes, out, strict=True))
    return _pool("avgpool", source, kernel, kernel, ((0, 0),) * len(out), (1,) * len(out))


def _average_pool(node: fx.Node, constants: set[fx.Node]) -> Step:
    source, given = _source(node), arguments(node)
    kernel = _each(given["kernel_size"], node)
    stride = _each(given["stride"] or kernel, node)
    _require(not any(_each(given["padding"], node)) and given.get("divisor_override") is None)
    _require(not given["ceil_mode"])
    return _pool("avgpool", source, kernel, stride, ((0, 0),) * len(kernel), (1,) * len(kernel))


def _max_pool(node: fx.Node, constants: set[fx.Node]) -> Step:
    source, given = _source(node), arguments(node)
    kernel = _each(given["kernel_size"], node)
    stride, dilation = _each(given["stride"] or kernel, node), _each(given["dilation"], node)
    pads = []
    # Where sizes are rounded up, the last window reaches beyond the padding behind.
    for at, before in enumerate(_each(given["padding"], node)):
        size, out = _sizes(source)[2 + at], _sizes(node)[2 + at]
        reach = (out - 1) * stride[at] + dilation[at] * (kernel[at] - 1) + 1
        pads.append((before, max(reach - size - before, 0)))
    return _pool("maxpool", source, kernel, stride, tuple(pads), dilation)


def _pool(
    kind: Kind,
    source: fx.Node,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pads: Pads,
    dilation: tuple[int, ...],
) -> Step:
    settings = {"kernel": kernel, "stride": stride, "pads": pads, "dilation": dilation}
    return Step(kind, (source,), settings)


def _each(value: int | Sequence[int], node: fx.Node) -> tuple[int, ...]:
    """A setting for every dimension of a map."""
    rank = len(_sizes(node)) - 2
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * rank if len(values) == 1 else values)


def _nearest(node: fx.Node, constants: set[fx.Node]) -> Step:
    source = _source(node)
    sizes, out = _sizes(source)[2:], _sizes(node)[2:]
    _require(min(sizes) > 0 and all(each % size == 0 for size, each in zip(sizes, out, strict=True)))
    return Step("nearest", (source,), {"factors": tuple(each // size for size, each in zip(sizes, out, strict=True))})


_READERS: dict[Any, Callable[[fx.Node, set[fx.Node]], Step | None]] = {
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys((aten.permute, aten.transpose), _permute),
    aten.slice: _slice,
    aten.cat: _concat,
    aten.mean: _mean,
    **dict.fromkeys((aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d), _adaptive),
    **dict.fromkeys((aten.avg_pool1d, aten.avg_pool2d), _average_pool),
    **dict.fromkeys((aten.max_pool1d, aten.max_pool2d), _max_pool),
    **dict.fromkeys((aten.upsample_nearest1d, aten.upsample_nearest2d), _nearest),
}
