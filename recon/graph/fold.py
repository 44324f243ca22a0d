"""Batch norm folding: a batch norm that reads one layer's output, and nothing else does, becomes part of the layer."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from recon.graph.layers import Calls, Layer


def fold_batch_norms(model: nn.Module, calls: Calls) -> dict[str, str]:
    """Folds every batch norm of `model` that can be folded, in place; the others are returned with the reason.

    A folded batch norm is replaced by nn.Identity. `calls` is a recorded forward pass of the model.
    """
    left: dict[str, str] = {}
    modules = dict(model.named_modules())
    for name, norm in modules.items():
        if not isinstance(norm, _BatchNorm):
            continue
        reason = _obstacle(name, norm, modules, calls)
        if reason:
            left[name] = reason
        else:
            _fold(modules[calls.norm_inputs[name]], norm)
            _replace(model, norm, nn.Identity().eval())
    return left


def _obstacle(name: str, norm: _BatchNorm, modules: dict[str, nn.Module], calls: Calls) -> str | None:
    """Why the batch norm must stay, or None."""
    if not calls.counts[name]:
        return "never called"
    if type(norm).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        return f"batch norm stays float: {type(norm).__name__} computes more than a batch norm"
    if norm.running_mean is None or norm.running_var is None:
        return "batch norm stays float: it keeps no running statistics"
    if calls.counts[name] > 1:
        return "batch norm stays float: it is called more than once"
    if name not in calls.norm_inputs:
        return "batch norm stays float: its input is not the output of a layer"
    source = calls.norm_inputs[name]
    if calls.counts[source] > 1:
        return f"batch norm stays float: {source} before it is called more than once"
    if calls.output_reads[source] > 1:
        return f"batch norm stays float: the output of {source} is also used elsewhere"
    layer = modules[source]
    if any(
        parameter is own
        for other in modules.values()
        if other is not layer
        for parameter in other.parameters(recurse=False)
        for own in layer.parameters(recurse=False)
    ) or any(calls.parameter_reads[f"{source}.{own}"] > 1 for own in ("weight", "bias")):
        return f"batch norm stays float: {source} before it shares its parameters"
    out_shape = calls.layers[source][0].out_shape
    if isinstance(layer, nn.Linear) and len(out_shape) != 2:
        return f"batch norm stays float: it does not normalise the channels of {source}"
    return None


@torch.no_grad()
def _fold(layer: nn.Module, norm: _BatchNorm) -> None:
    """w' = w·s, b' = (b − μ)·s + β with s = γ / √(σ² + ε), computed in double precision."""
    assert isinstance(layer, Layer)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double()
    if layer.bias is not None:
        bias = bias + layer.bias.double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `old` is registered."""
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new
