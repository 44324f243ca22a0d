"""The first and the last layer: at 8 bits by convention, where the budget has room for that."""

from __future__ import annotations

from hwmodel import LayerTable, Precision
from hwmodel.size import layer_bytes
from mpsearch.options import EDGE_BITS, EdgePolicy

LARGEST_SHARE = 0.25


def pinned_edges(table: LayerTable, budget_bytes: int, policy: EdgePolicy) -> tuple[str, ...]:
    """Names of the edge layers that are held at 8 bits.

    Under `auto`, one that would take more than a quarter of the budget at 8 bits is searched like any other: the
    classifier of MobileNetV2 on ImageNet has 37 % of all weights.
    """
    edges = tuple(dict.fromkeys((table[0], table[-1])))
    if policy == "free":
        return ()
    small = (layer for layer in edges if layer_bytes(layer, Precision(EDGE_BITS)) <= LARGEST_SHARE * budget_bytes)
    return tuple(layer.name for layer in (edges if policy == "8" else small))
