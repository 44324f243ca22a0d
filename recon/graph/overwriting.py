"""A module that computes the same and writes results over what nobody else reads: passes over memory are what a small
network's inference takes longest for."""

from __future__ import annotations

import copy

from torch import fx

from recon.graph.nodes import aten
from recon.graph.units import is_layer

_ACTIVATIONS = {
    aten.relu.default: aten.relu_.default,
    aten.hardtanh.default: aten.hardtanh_.default,
    aten.hardswish.default: aten.hardswish_.default,
    aten.silu.default: aten.silu_.default,
}


def overwriting(module: fx.GraphModule) -> fx.GraphModule:
    """The same operations on the same submodules, to the same bits: activations and sums are written over the output of
    the layer, or the sum, that they alone read. For inference: no gradient passes what is gone."""
    result = fx.GraphModule(module, copy.deepcopy(module.graph))
    for node in result.graph.nodes:
        first = node.args[0] if node.args else None
        if node.target in _ACTIVATIONS and _is_own(result, first):
            node.target = _ACTIVATIONS[node.target]
        elif node.target is aten.add.Tensor and len(node.all_input_nodes) == 2 and not node.kwargs:
            one, other = node.args
            if not _is_own(result, one):
                one, other = other, one
            if _is_own(result, one) and _shape(one) is not None and _shape(one) == _shape(other):
                node.args, node.target = (one, other), aten.add_.Tensor
    result.recompile()
    return result


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of a real tensor; None of any other, or where it is not known."""
    return node.meta.get("shape") if node.meta.get("floating") else None


def _is_own(module: fx.GraphModule, node: object) -> bool:
    """The node's value is a tensor of its own that has one reader."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    return is_layer(module, node) or node.target in (aten.add.Tensor, aten.add_.Tensor)
