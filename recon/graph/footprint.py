"""How many values a graph holds for one sample, while it runs and for a backward pass: read off it, nothing is run."""

from __future__ import annotations

import math
import operator

from torch import fx

from recon.graph.nodes import SAMPLES, VIEWS, packet_of


def values_of(node: fx.Node) -> int:
    """The values of a node for one sample; 0 where it is no tensor of samples."""
    if node.meta.get(SAMPLES) is None or "shape" not in node.meta:
        return 0
    return math.prod(abs(size) for size in node.meta["shape"])


def kept_values(module: fx.GraphModule) -> int:
    """All values that are computed for one sample, each tensor once: what a backward pass may want of them."""
    return sum(values_of(node) for node in module.graph.nodes if node.op.startswith("call") and not _is_view(node))


def alive_values(module: fx.GraphModule) -> int:
    """The most values for one sample that are alive at a time in a forward pass, its inputs left out: a tensor goes
    with its last reader."""
    order = list(module.graph.nodes)
    owner: dict[fx.Node, fx.Node] = {}
    ends: dict[fx.Node, int] = {}
    for at, node in enumerate(order):
        sources = node.all_input_nodes
        owner[node] = owner[sources[0]] if _is_view(node) and sources else node
        for read in (node, *sources):
            ends[owner[read]] = at
    alive = most = 0
    going: dict[int, int] = {}
    for at, node in enumerate(order):
        if owner[node] is node and node.op.startswith("call"):
            alive += values_of(node)
            going[ends[node]] = going.get(ends[node], 0) + values_of(node)
        most = max(most, alive)
        alive -= going.get(at, 0)
    return most


def _is_view(node: fx.Node) -> bool:
    return node.op == "call_function" and (packet_of(node) in VIEWS or node.target is operator.getitem)
