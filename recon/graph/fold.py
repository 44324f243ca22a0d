"""Batch norm folding: a batch norm that reads one layer's output, and nothing else does, becomes part of the layer."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from recon.graph.layers import Layer, Linear
from recon.graph.nodes import aten, constant_nodes, packet_of, value_of

NORM = aten._native_batch_norm_legit_no_training


def fold_batch_norms(module: fx.GraphModule) -> dict[str, str]:
    """Folds every batch norm of a captured module that can be folded, in place; the others are single operations then.

    Gives by the path of the module that holds its statistics why a batch norm was left.
    """
    constants = constant_nodes(module.graph)
    left: dict[str, str] = {}
    for node in [node for node in module.graph.nodes if packet_of(node) is NORM]:
        x, *parts, _, eps = node.args
        reason = _obstacle(module, node, constants)
        (result,) = (user for user in node.users if user.target is operator.getitem)
        if reason is None:
            assert isinstance(x, fx.Node)
            layer = module.get_submodule(str(x.target))
            assert isinstance(layer, Layer)
            _fold(layer, [None if part is None else value_of(module, part) for part in parts], float(eps))
            result.replace_all_uses_with(x)
        else:
            path = next(str(part.target) for part in reversed(parts) if isinstance(part, fx.Node))
            left[path.rpartition(".")[0]] = f"batch norm stays float: {reason}"
            with module.graph.inserting_before(node):
                plain = module.graph.call_function(aten.batch_norm.default, (x, *parts, False, 0.1, eps, True))
            plain.meta = dict(result.meta)
            result.replace_all_uses_with(plain)
        module.graph.erase_node(result)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return left


def _obstacle(module: fx.GraphModule, node: fx.Node, constants: set[fx.Node]) -> str | None:
    """Why the batch norm must stay, or None."""
    x, *parts, _, _ = node.args
    assert isinstance(x, fx.Node)
    layer = module.get_submodule(str(x.target)) if x.op == "call_module" else None
    if any(isinstance(part, fx.Node) and part not in constants for part in parts):
        return "its statistics depend on the input"
    if not isinstance(layer, Layer) or not len(layer.bias):
        return "its input is not the output of a layer"
    if sum(other.target == x.target for other in module.graph.nodes if other.op == "call_module") > 1:
        return f"{x.target} before it is called more than once"
    if len(x.users) > 1:
        return f"the output of {x.target} is also used elsewhere"
    if isinstance(layer, Linear) and len(x.meta["shape"]) != 2:
        return f"it does not normalise the channels of {x.target}"
    return None


@torch.no_grad()
def _fold(layer: Layer, parts: list[Any], eps: float) -> None:
    """w' = w·s, b' = (b − μ)·s + β with s = γ / √(σ² + ε), computed in double precision."""
    gamma, beta, mean, variance = (None if part is None else part.double() for part in parts)
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    scale = (variance + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma
    bias = (layer.bias.double() - mean) * scale
    if beta is not None:
        bias = bias + beta
    weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight.data, layer.bias.data = weight.to(layer.weight.dtype), bias.to(layer.bias.dtype)
