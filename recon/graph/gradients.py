"""Where gradients cannot be had: operations without a backward, and steps, whose slope is zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from recon.graph.nodes import aten, packet_of
from recon.graph.units import is_layer

_STEPS = (aten.round, aten.floor, aten.ceil, aten.trunc, aten.sign, aten.sgn, aten.heaviside, aten.floor_divide)
_OURS = ("aten", "prims", "prim", "_operator", "math")
_KEYS = ("Autograd", "AutogradCPU", "AutogradCUDA", "CompositeImplicitAutograd")


def apart(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation that has no backward, outside of every gradient: what it gives counts as constant."""
    with torch.no_grad():
        return tree_map(lambda z: z.detach() if isinstance(z, Tensor) else z, operation(*args, **kwargs))


def without_backward(module: fx.GraphModule) -> None:
    """Operations of libraries that cannot be differentiated are called by `apart`."""
    for node in module.graph.nodes:
        if node.op == "call_function" and not _differentiable(node.target):
            node.args = (node.target, *node.args)
            node.target = apart


def _differentiable(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload) or target.namespace in _OURS:
        return True
    name = str(target.name())  # type: ignore[no-untyped-call]
    custom = torch._library.custom_ops.OPDEFS.get(name.partition(".")[0])
    if custom is not None:
        return custom._backward_fn is not None
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in _KEYS)


def without_gradient(module: fx.GraphModule) -> set[str]:
    """The layers of a captured module whose effect on the outputs gradients do not show, or not all of it.

    These are layers in front of a step (rounding, a sign, an index) or of an operation that has no backward, and those
    that reach the outputs through comparisons alone. A mask beside the values it masks has the right slope.
    """
    flows: set[fx.Node] = set()  # the output has a derivative by it
    blocked: set[fx.Node] = set()  # so it has not, on some way
    reaches: set[fx.Node] = set()
    found: set[str] = set()
    for node in reversed(module.graph.nodes):
        for user in node.users:
            if user.op == "output":
                flows.add(node)
                reaches.add(node)
            if user not in reaches or user.meta.get("counts"):
                continue
            reaches.add(node)
            if _is_step(user):
                blocked.add(node)
                continue
            if user in blocked:
                blocked.add(node)
            if user in flows and not _is_mask(user):
                flows.add(node)
        if is_layer(module, node) and node in reaches and (node in blocked or node not in flows):
            found.add(str(node.target))
    return found


def _is_step(node: fx.Node) -> bool:
    whole = "shape" in node.meta and not node.meta["floating"] and not _is_mask(node)
    rounded = packet_of(node) is aten.div and node.kwargs.get("rounding_mode") is not None
    return packet_of(node) in _STEPS or node.target is apart or whole or rounded


def _is_mask(node: fx.Node) -> bool:
    return bool(node.meta.get("truth"))
