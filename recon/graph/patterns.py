"""Patterns in a captured graph: what reads a layer, what averages, what adds."""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Iterable

from torch import fx, nn

from recon.graph.nodes import aten, packet_of

_MEANS = (aten.adaptive_avg_pool2d, aten.avg_pool2d, aten.mean)
_SHAPES = (aten.reshape, aten.squeeze, aten.unsqueeze, aten.flatten, aten.clone)


def only_call(module: fx.GraphModule, name: str) -> fx.Node | None:
    """The one call of the submodule `name`; None where there are several, or none."""
    nodes = [node for node in module.graph.nodes if node.op == "call_module" and node.target == name]
    return nodes[0] if len(nodes) == 1 else None


def calls_one_of(node: fx.Node, names: Container[object]) -> bool:
    """The node calls one of the submodules `names`."""
    return node.op == "call_module" and node.target in names


def leading_to(module: fx.GraphModule, name: str) -> fx.GraphModule:
    """What of a module leads to the one call of its submodule `name`, with the same submodules and inputs; `module`
    itself where there is none."""
    node = only_call(module, name)
    if node is None:
        return module
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for original in node.graph.nodes:
        copies[original] = graph.node_copy(original, copies.__getitem__)
        if original is node:
            break
    graph.output((copies[node],))
    result = fx.GraphModule(module, graph)
    result.graph.eliminate_dead_code()
    result.recompile()
    return result


def with_pooled_maps(module: fx.GraphModule, names: Iterable[str]) -> tuple[fx.GraphModule, dict[str, nn.Module]]:
    """A module that computes the same with the same submodules, and by layer of `names` that reads means over a map's
    positions, as a classifier does, a submodule of it that this map passes through."""
    result = fx.GraphModule(module, copy.deepcopy(module.graph))
    maps: dict[str, nn.Module] = {}
    for name in names:
        node = only_call(result, name)
        source = _averaged_by(node) if node else None
        if source is None:
            continue
        at = f"pooled_map_{len(maps)}"
        maps[name] = nn.Identity()
        result.add_submodule(at, maps[name])
        with result.graph.inserting_after(source):
            passed = result.graph.call_module(at)
        source.replace_all_uses_with(passed)
        passed.args = (source,)
    result.recompile()
    return result, maps


def _averaged_by(node: fx.Node) -> fx.Node | None:
    """The feature map that reaches `node` through pooling and reshapes only; None without pooling."""
    averaged = False
    while node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        if packet_of(node) not in (*_MEANS, *_SHAPES):
            break
        averaged |= packet_of(node) in _MEANS
    return node if averaged else None


def is_plain_addition(node: fx.Node) -> bool:
    """The node adds a tensor to another one, or to a constant, neither of them scaled."""
    return packet_of(node) is aten.add and not node.kwargs and len(set(node.args)) == len(node.args) == 2


def relu_cap(node: fx.Node) -> float | None:
    """Where a ReLU cuts off, infinity where it does not; None where the node is no ReLU."""
    if packet_of(node) is aten.relu:
        return math.inf
    if packet_of(node) is aten.relu6:
        return 6.0
    if packet_of(node) not in (aten.hardtanh, aten.clamp):
        return None
    low, high = _ends(node)
    return float(high) if low == 0 and isinstance(high, int | float) and high > 0 else None


def _ends(node: fx.Node) -> tuple[object, object]:
    """Where a clamp or hardtanh cuts off."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    defaults = {"min": None, "max": None, "min_val": -1, "max_val": 1}
    given = {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    return given[names[1]], given[names[2]]
