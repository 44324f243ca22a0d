"""Units: convex parts of a captured graph, as modules of their own with some tensors in and some out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from recon.graph.layers import Layer
from recon.graph.nodes import SAMPLES, aten

UNIT = "unit"  # node.meta: the name of the unit that a node belongs to


@dataclass(frozen=True, slots=True)
class Unit:
    """One reconstruction unit: a block, or a single layer where no block is.

    `layers` are its quantizable layers in execution order. `module` maps the tensors that it `reads` to a tuple of
    those that it `writes`, all of them (N, …), under the names that they have in the network's graph; it shares the
    layers with the network. `floating` says which of the written tensors are real numbers.
    """

    name: str
    layers: tuple[str, ...]
    module: fx.GraphModule
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    floating: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError(f"unit {self.name!r} has no layers")


def repeated_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on parameters and on the number of samples alone, and call no layer: every unit that needs them
    has them itself."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        computed = node.op == "call_function" and found.issuperset(node.all_input_nodes)
        if node.op == "get_attr" or node.meta.get("counts") or computed:
            found.add(node)
    return found


def flow_nodes(graph: fx.Graph) -> list[fx.Node]:
    """What is computed from the samples, in order."""
    repeated = repeated_nodes(graph)
    return [node for node in graph.nodes if node.op not in ("placeholder", "output") and node not in repeated]


def is_layer(module: torch.nn.Module, node: fx.Node) -> bool:
    """The node calls a layer."""
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), Layer)


def label(nodes: Sequence[fx.Node], name: str) -> None:
    """Says that nodes belong to the unit `name`."""
    for node in nodes:
        node.meta[UNIT] = name


def units_of(module: fx.GraphModule) -> tuple[Unit, ...]:
    """The units that the nodes of a captured module are labelled with, in order of execution."""
    members: dict[str, list[fx.Node]] = {}
    for node in flow_nodes(module.graph):
        members.setdefault(node.meta[UNIT], []).append(node)
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    return tuple(_unit(module, name, nodes, order) for name, nodes in members.items())


def _unit(module: fx.GraphModule, name: str, nodes: list[fx.Node], order: Mapping[fx.Node, int]) -> Unit:
    inside = set(nodes)
    needed: list[fx.Node] = []  # what the nodes and the repeated nodes before them read
    seen: set[fx.Node] = set()

    def visit(node: fx.Node) -> None:
        if node in inside or node in seen:
            return
        seen.add(node)
        if node.op == "placeholder" or node.meta.get(UNIT):
            needed.append(node)
        elif not node.meta.get("counts"):
            for source in node.all_input_nodes:
                visit(source)

    for node in nodes:
        for source in node.all_input_nodes:
            visit(source)
    reads = sorted(needed, key=order.__getitem__)
    writes = [node for node in nodes if any(user not in inside for user in node.users)]
    graph = _subgraph(nodes, reads, writes)
    layers = tuple(dict.fromkeys(str(node.target) for node in nodes if is_layer(module, node)))
    return Unit(
        name,
        layers,
        fx.GraphModule(module, graph, class_name="Unit"),
        tuple(node.name for node in reads),
        tuple(node.name for node in writes),
        tuple(bool(node.meta.get("floating", True)) for node in writes),
    )


def _subgraph(nodes: Sequence[fx.Node], reads: Sequence[fx.Node], writes: Sequence[fx.Node]) -> fx.Graph:
    """The nodes as a graph of their own. Between units samples come first; inside, where the network has them."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    placeholders = [graph.placeholder(node.name) for node in reads]
    for node, placeholder in zip(reads, placeholders, strict=True):
        placeholder.meta = dict(node.meta)
        copies[node] = _moved(graph, placeholder, 0, node.meta.get(SAMPLES) or 0)

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            first_size = node.meta.get("counts") and node.target is aten.sym_size.int
            if first_size:  # the number of samples
                copies[node] = graph.call_function(aten.sym_size.int, (placeholders[0], 0))
            else:
                for source in node.all_input_nodes:
                    copied(source)
                copies[node] = graph.node_copy(node, copies.__getitem__)
        return copies[node]

    for node in nodes:
        copied(node)
    graph.output(tuple(_moved(graph, copies[node], node.meta.get(SAMPLES) or 0, 0) for node in writes))
    return graph


def _moved(graph: fx.Graph, node: fx.Node, source: int, destination: int) -> fx.Node:
    """The tensor of `node` with axis `source` moved."""
    return node if source == destination else graph.call_function(torch.movedim, (node, source, destination))
