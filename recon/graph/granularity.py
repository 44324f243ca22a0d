"""What is reconstructed at once: layers, blocks, stages, or the network (BRECQ, arXiv 2102.05426, section 3.2)."""

from __future__ import annotations

import copy
from itertools import groupby
from typing import Literal

from torch import fx

from recon.graph.network import Network
from recon.graph.units import UNIT, flow_nodes, is_layer

Granularity = Literal["layer", "block", "stage", "network"]


def regroup(network: Network, granularity: Granularity) -> Network:
    """`network` with other units; the layers are shared.

    A stage is a run of blocks whose last layers have one output resolution. Where layers are units, what stands between
    two of them belongs to the second, so that a unit ends with its layer.
    """
    if granularity == "block":
        return network
    module = fx.GraphModule(network.module, copy.deepcopy(network.module.graph))
    names = _layer_names(network) if granularity == "layer" else _renamed(network, granularity)
    for node, name in zip(flow_nodes(module.graph), names, strict=True):
        node.meta[UNIT] = name
    return network.rebuilt(module)


def _renamed(network: Network, granularity: Granularity) -> list[str]:
    if granularity == "network":
        names = {unit.name: "network" for unit in network.units}
    else:
        sizes = {layer.name: (layer.kind, layer.out_size) for layer in network.table}
        names = {}
        for _, found in groupby(network.units, lambda unit: sizes[unit.layers[-1]]):
            stage = [unit.name for unit in found]
            name = stage[0] if len(stage) == 1 else f"{stage[0]} … {stage[-1]}"
            names |= dict.fromkeys(stage, name)
    return [names[node.meta[UNIT]] for node in flow_nodes(network.module.graph)]


def _layer_names(network: Network) -> list[str]:
    """By node, the next layer; the last one behind it. Layers that are called again join what lies between."""
    nodes = flow_nodes(network.module.graph)
    calls = [str(node.target) if is_layer(network.module, node) else None for node in nodes]
    reach = {name: at for at, name in enumerate(calls) if name}
    starts = {name: calls.index(name) for name in reach}
    names: list[str] = []
    following = next(reversed(reach))
    for name in reversed(calls):
        following = name or following
        names.append(following)
    names.reverse()
    for name, last in reach.items():
        if last > starts[name]:
            names[starts[name] : last + 1] = [names[starts[name]]] * (last + 1 - starts[name])
    return names
