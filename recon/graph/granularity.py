"""What is reconstructed at once: layers, blocks, stages, or the network (BRECQ, arXiv 2102.05426, section 3.2)."""

from __future__ import annotations

from itertools import groupby

from recon.graph.network import Network, Unit
from recon.graph.partition import join
from recon.settings import Granularity


def regroup(network: Network, granularity: Granularity) -> Network:
    """`network`, sharing all modules, with other units.

    A stage is a run of blocks whose last layers have one output resolution. A network that is no chain of blocks has
    layers for blocks and for stages.
    """
    if granularity == "layer":
        units = tuple(Unit(name, (name,), network.layer(name)) for name in network.table.names)
        return Network(network.model, network.table, units, chained=False)
    if granularity == "network":
        return Network(network.model, network.table, (Unit("network", network.table.names, network.model),), True)
    if granularity == "block" or not network.chained:
        return network
    sizes = {layer.name: (layer.kind, layer.out_size) for layer in network.table}
    stages = [list(units) for _, units in groupby(network.units, lambda unit: sizes[unit.layers[-1]])]
    return Network(network.model, network.table, tuple(_stage(network, stage) for stage in stages), True)


def _stage(network: Network, units: list[Unit]) -> Unit:
    layers = tuple(layer for unit in units for layer in unit.layers)
    name = units[0].name if len(units) == 1 else f"{units[0].name} … {units[-1].name}"
    return Unit(name, layers, join(network.model, units))
