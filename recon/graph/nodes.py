"""Nodes of a captured graph: what they call, what they are worth, and what is noted of them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
SAMPLES = "samples"  # node.meta: which axis of the value counts the samples, None where none does
ELSEWHERE = "read_elsewhere"  # what holds parameters of layers that other operations read as well
# What these give lies in the memory of what they read.
VIEWS = frozenset((
    aten.view, aten._unsafe_view, aten.reshape, aten.flatten, aten.permute, aten.transpose, aten.t, aten.movedim,
    aten.expand, aten.squeeze, aten.unsqueeze, aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.chunk,
    aten.unbind, aten.alias, aten.detach,
))  # fmt: skip
STACK = "modules"  # node.meta: paths of the modules that were running, outermost first


def value_of(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The value of a node that depends on parameters alone."""
    known: dict[fx.Node, Any] = {}

    def value(node: fx.Node) -> Any:
        if node not in known:
            if node.op == "get_attr":
                known[node] = operator.attrgetter(str(node.target))(module)
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
                known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return known[node]

    with torch.no_grad():
        result: Tensor = value(node)
        return result.detach().clone()


def constant_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on parameters, buffers and constants alone, and call no layer."""
    constants: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and constants.issuperset(node.all_input_nodes)):
            constants.add(node)
    return constants


def packet_of(node: fx.Node) -> Any:
    """The operation that a node calls, whatever its overload."""
    return getattr(node.target, "overloadpacket", node.target) if node.op == "call_function" else None


def note_samples(graph: fx.Graph) -> None:
    """Notes of every value its shape, sizes that grow with the number of samples as minus their size for one sample,
    and which axis counts the samples; drops what torch.export remembers of it."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    names = {str(node.meta["val"].shape[0]) for node in inputs}
    for node in graph.nodes:
        value = node.meta.get("val")
        axes: list[int] = []
        if isinstance(value, Tensor):
            axes = [axis for axis, size in enumerate(value.shape) if str(size) in names]
            node.meta["shape"] = tuple(map(_per_sample, value.shape))
            node.meta["floating"] = value.is_floating_point()
            node.meta["truth"] = value.dtype == torch.bool
        node.meta["counts"] = isinstance(value, torch.SymInt)
        node.meta[SAMPLES] = axes[0] if len(axes) == 1 else None
        kept = ("shape", "floating", "truth", "counts", SAMPLES, STACK)
        node.meta = {key: node.meta[key] for key in kept if key in node.meta}


def _per_sample(size: int | torch.SymInt) -> int:
    """A size as it is, or minus what it is for one sample where it grows with the number of samples."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return -int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))
