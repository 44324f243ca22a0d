"""What a network computes beside its layers: functions of values, sums, pooling, maps that are joined or enlarged."""

from __future__ import annotations

from collections import Counter

from torch import fx

from recon.graph.nodes import VIEWS, aten, packet_of
from recon.graph.units import flow_nodes

_MOVE_NOTHING = VIEWS | {aten.dropout}


def operations_beside(module: fx.GraphModule) -> dict[str, int]:
    """How often a captured module calls each ATen operation that is no layer and no view, the most frequent first."""
    called: Counter[str] = Counter()
    for node in flow_nodes(module.graph):
        packet = packet_of(node)
        if packet is not None and packet not in _MOVE_NOTHING and "shape" in node.meta and not node.meta.get("counts"):
            called[str(packet).removeprefix("aten.")] += 1
    return dict(called.most_common())
