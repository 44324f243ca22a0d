"""The first and the last layer: at 8 bits by convention, where the budgets have room for that."""

from __future__ import annotations

from collections.abc import Mapping

from hwmodel import CostTable, LayerTable
from hwmodel.cost import layer_costs
from mpsearch.request.parse import EdgePolicy

LARGEST_SHARE = 0.25


def edge_layers(table: LayerTable) -> tuple[str, ...]:
    """The first and the last layer."""
    return tuple(table.names[i] for i in dict.fromkeys((0, len(table) - 1)))


def pinned_edges(
    table: LayerTable, costs: CostTable, budgets: Mapping[str, float], policy: EdgePolicy
) -> tuple[str, ...]:
    """Names of the edge layers that are held at 8 bits; `costs` are those of the layers at 8 bits, arrays (L, 1).

    Under `auto`, one that would take more than a quarter of any budget at 8 bits is searched like any other: the
    classifier of MobileNetV2 on ImageNet has 37 % of all weights.
    """
    if policy == "free":
        return ()
    edges = edge_layers(table)
    if policy == "8":
        return edges
    alone, at = layer_costs(table, costs, costs.precisions), [table.names.index(name) for name in edges]
    largest = [max(float(alone[cost][i, 0]) / limit for cost, limit in budgets.items()) for i in at]
    return tuple(name for name, share in zip(edges, largest, strict=True) if share <= LARGEST_SHARE)
