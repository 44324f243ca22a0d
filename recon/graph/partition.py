"""Partition of a traced graph into reconstruction units.

BRECQ (arXiv 2102.05426, section 3.2) reconstructs residual blocks. Here they are found in the graph: where exactly one
tensor is alive the graph can be cut, and what lies between two neighbouring cuts is a segment: one step of a chain, or
everything from a branch to its join. The modules that hold a branch tell which module types are blocks, so that an
instance without a branch (an inverted residual of stride 2) is one as well.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from recon.graph.patterns import module_paths

_PLAIN = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_HEADS = ("pool", "dropout")


@dataclass(frozen=True, slots=True)
class Unit:
    """One reconstruction unit: a block, or a single layer where no block is.

    `layers` are its quantizable layers in execution order. `module` maps a tensor (N, …) to a tensor (N, …) and shares
    its layer modules with the network's model.
    """

    name: str
    layers: tuple[str, ...]
    module: nn.Module

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError(f"unit {self.name!r} has no layers")


@dataclass(frozen=True, slots=True)
class _Segment:
    """Nodes between two neighbouring cuts: reads the tensor `source`, hands on the tensor `result`."""

    nodes: tuple[fx.Node, ...]
    source: fx.Node
    result: fx.Node
    layers: tuple[str, ...]
    activation: bool


def partition(model: nn.Module, graph: fx.Graph, x: Tensor, layers: tuple[str, ...]) -> tuple[Unit, ...] | None:
    """Units of `graph`, the traced graph of model(x), that compute the model when applied one after another.

    `layers` names the quantizable layers. None where the model does not return one tensor.
    """
    shapes = _shapes(model, graph, x)
    _read_batch_size_locally(graph, shapes, len(x))
    segments = _segments(model, graph, shapes, layers)
    if not any(segment.layers for segment in segments):
        return None
    groups = _merge_shared(segments, _attach(segments, _blocks(model, segments)))
    return tuple(_unit(model, segments[start:stop], layers) for start, stop in groups)


def join(root: nn.Module, units: Iterable[Unit]) -> fx.GraphModule:
    """One module that applies the units of a chained network, whose model is `root`, one after another."""
    graph = fx.Graph()
    x: fx.Node = graph.placeholder("x")
    for unit in units:
        assert isinstance(unit.module, fx.GraphModule)
        (entry,) = (node for node in unit.module.graph.nodes if node.op == "placeholder")
        handed_on = graph.graph_copy(unit.module.graph, {entry: x})
        assert isinstance(handed_on, fx.Node)
        x = handed_on
    graph.output(x)
    return fx.GraphModule(root, graph, class_name="Chain")


def _shapes(model: nn.Module, graph: fx.Graph, x: Tensor) -> dict[fx.Node, torch.Size]:
    """Shapes of the nodes whose value is a tensor."""
    shapes: dict[fx.Node, torch.Size] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n] = value.shape
            return value

    with torch.no_grad():
        Shapes(model, graph=graph).run(x)
    return shapes


def _read_batch_size_locally(graph: fx.Graph, shapes: dict[fx.Node, torch.Size], batch: int) -> None:
    """Users of an early `x.size(0)` read it from their own input instead: a number alive all along prevents cuts."""
    for node in list(graph.nodes):
        is_size = node.op == "call_method" and node.target == "size" and node.args[1:] == (0,)
        is_item = node.target is operator.getitem and node.args[1] == 0 and isinstance(node.args[0], fx.Node)
        if not is_size and not (is_item and _function(node.args[0]) in ("size", "getattr")):
            continue
        for user in list(node.users):
            source = next((n for n in user.all_input_nodes if n in shapes and shapes[n][:1] == (batch,)), None)
            if source:
                with graph.inserting_before(user):
                    local = graph.call_method("size", (source, 0))
                local.meta = dict(user.meta)
                user.replace_input_with(node, local)


def _segments(
    model: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, torch.Size], layers: tuple[str, ...]
) -> list[_Segment]:
    """The graph cut wherever exactly one value is alive and that value is a tensor; empty if the last one is not."""
    skipped = _constants(graph)
    flow = [node for node in graph.nodes if node.op != "output" and node not in skipped]
    index = {node: i for i, node in enumerate(flow)}
    last = {node: max((index.get(user, len(flow)) for user in node.users), default=-1) for node in flow}
    segments: list[_Segment] = []
    alive: list[fx.Node] = []
    start, source = 1, flow[0]
    for i, node in enumerate(flow):
        alive = [other for other in (*alive, node) if last[other] > i]
        if i and len(alive) == 1 and alive[0] in shapes:
            nodes = tuple(flow[start : i + 1])
            found = tuple(dict.fromkeys(name for n in nodes for name in _layers_in(n, layers)))
            same_shape = shapes[source] == shapes[alive[0]]
            is_head = any(head in _operation(model, n) for n in nodes for head in _HEADS)
            segments.append(_Segment(nodes, source, alive[0], found, same_shape and not is_head and not found))
            start, source = i + 1, alive[0]
    (output,) = (node for node in graph.nodes if node.op == "output")
    return segments if output.args[0] is source and start == len(flow) else []


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that do not depend on the input (parameters used directly, and functions of them)."""
    constants: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op in ("get_attr", "call_function", "call_method") and constants.issuperset(node.all_input_nodes):
            constants.add(node)
    return constants


def _layers_in(node: fx.Node, layers: tuple[str, ...]) -> list[str]:
    """Layers that the node calls: itself, or those inside a submodule that could not be traced."""
    if node.op != "call_module":
        return []
    return [name for name in layers if name == node.target or name.startswith(f"{node.target}.")]


def _operation(model: nn.Module, node: fx.Node) -> str:
    """What the node computes, as a lower-case name."""
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__.lower()
    return _function(node).lower()


def _function(node: fx.Node) -> str:
    """The name of the function or method that the node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _home(model: nn.Module, nodes: tuple[fx.Node, ...]) -> str | None:
    """The smallest module that holds all nodes and is no plain container; None where that is the model itself."""
    first, *rest = (module_paths(node) for node in nodes)
    for path in reversed(first):
        if all(path in paths for paths in rest) and type(model.get_submodule(path)) not in _PLAIN:
            return path
    return None


def _blocks(model: nn.Module, segments: list[_Segment]) -> list[tuple[int, int]]:
    """Ranges [start, stop) of segments that are one instance of a block type."""
    homes = {_home(model, segment.nodes) for segment in segments if segment.layers and len(segment.nodes) > 1}
    # A module that holds other homes is a trunk, not a block.
    homes = {home for home in homes if home and not any(other and other.startswith(f"{home}.") for other in homes)}
    types = {type(model.get_submodule(home)) for home in homes if home}
    where: dict[str, list[int]] = defaultdict(list)
    for i, segment in enumerate(segments):
        for path in {path for node in segment.nodes for path in module_paths(node)}:
            if type(model.get_submodule(path)) in types:
                where[path].append(i)
    instances: dict[type[nn.Module], int] = defaultdict(int)
    for path in where:
        instances[type(model.get_submodule(path))] += 1
    taken: set[int] = set()
    blocks: list[tuple[int, int]] = []
    for path in sorted(where, key=lambda path: (path.count("."), path)):
        start, stop = where[path][0], where[path][-1] + 1
        run = segments[start:stop]
        # A type seen once says nothing about other instances: its branches are units by themselves.
        if (
            instances[type(model.get_submodule(path))] > 1
            and taken.isdisjoint(range(start, stop))
            and any(segment.layers for segment in run)
            and all(path in module_paths(node) for segment in run for node in segment.nodes)
        ):
            taken.update(range(start, stop))
            blocks.append((start, stop))
    return sorted(blocks)


def _attach(segments: list[_Segment], blocks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that cover all segments, each with a layer.

    Activations join what is before them; pooling, dropout and changes of shape what follows.
    """
    starts = dict(blocks)
    groups: list[tuple[int, int]] = []
    pending = i = 0
    while i < len(segments):
        stop = starts.get(i, i + 1)
        if any(segment.layers for segment in segments[i:stop]):
            groups.append((pending, stop))
            pending = stop
        elif groups and pending == i and segments[i].activation:
            groups[-1] = groups[-1][0], stop
            pending = stop
        i = stop
    groups[-1] = groups[-1][0], len(segments)
    return groups


def _merge_shared(segments: list[_Segment], groups: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ranges, merged until no layer is in two of them."""
    reach: dict[str, int] = {}
    for i, segment in enumerate(segments):
        for layer in segment.layers:
            reach[layer] = i
    merged: list[tuple[int, int]] = []
    end = 0
    for start, stop in groups:
        if merged and start < end:
            merged[-1] = merged[-1][0], stop
        else:
            merged.append((start, stop))
        end = max(end, *(reach[layer] + 1 for segment in segments[start:stop] for layer in segment.layers))
    return merged


def _unit(model: nn.Module, segments: list[_Segment], layers: tuple[str, ...]) -> Unit:
    nodes = tuple(node for segment in segments for node in segment.nodes)
    inside = {name for segment in segments for name in segment.layers}
    own = tuple(name for name in layers if name in inside)
    home = _home(model, tuple(node for segment in segments if segment.layers for node in segment.nodes))
    # A submodule that could not be traced is a node, not the home of nodes.
    home = next((str(node.target) for node in nodes if len(_layers_in(node, layers)) == len(own)), home)
    name = own[0]
    if len(own) > 1 and home and inside.issuperset(n for n in layers if n.startswith(f"{home}.")):
        name = home
    return Unit(name, own, _subgraph(model, nodes, segments[0].source, segments[-1].result))


def _subgraph(model: nn.Module, nodes: tuple[fx.Node, ...], source: fx.Node, result: fx.Node) -> fx.GraphModule:
    """The nodes as a module of one input; constants that they read are copied along."""
    graph = fx.Graph()
    copies = {source: graph.placeholder("x")}

    def copy(node: fx.Node) -> fx.Node:
        if node not in copies:
            copies[node] = graph.node_copy(node, copy)
        return copies[node]

    for node in nodes:
        copy(node)
    graph.output(copies[result])
    return fx.GraphModule(model, graph, class_name="Unit")
