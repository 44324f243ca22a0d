"""Where gradients cannot be had: operations without a backward, and steps, whose slope is zero."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from hwmodel.errors import InputError, no_memory
from recon.graph.nodes import aten, constant_nodes, packet_of
from recon.graph.units import is_layer

FORKED = "fork-based multiprocessing"  # how autograd says that its threads stayed behind
_STEPS = (aten.round, aten.floor, aten.ceil, aten.trunc, aten.sign, aten.sgn, aten.heaviside, aten.floor_divide)


def apart(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation that has no backward, outside of every gradient: what it gives counts as constant."""
    with torch.no_grad():
        return tree_map(lambda z: z.detach() if isinstance(z, Tensor) else z, operation(*args, **kwargs))


def without_backward(module: fx.GraphModule, leaves: Sequence[Tensor]) -> None:
    """Operations that raise where a gradient is asked of them are called by `apart`: found by asking, once each, on
    samples, whose tensors are (N, …).

    Raises InputError in a process that can compute no gradients: one forked from a process that has.
    """
    found = _Trial(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found.run(*leaves)
    for node in module.graph.nodes:
        if node.op == "call_function" and not found.differentiable.get(node.target, True):
            node.args = (node.target, *node.args)
            node.target = apart


class _Trial(fx.Interpreter):
    """Runs a graph, and a backward pass of every operation by what of its arguments depends on the samples."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False  # it adds lines to what is said of an error
        self.differentiable: dict[Any, bool] = {}
        self.constants = constant_nodes(module.graph)

    def run_node(self, n: fx.Node) -> Any:
        if isinstance(n.target, torch._ops.OpOverload) and n.target not in self.differentiable:
            fixed = {id(self.env[node]) for node in n.all_input_nodes if node in self.constants}
            self.differentiable[n.target] = _has_backward(n.target, *self.fetch_args_kwargs_from_env(n), fixed)
        with torch.no_grad():
            return super().run_node(n)


def _has_backward(target: Any, args: Any, kwargs: Any, fixed: set[int]) -> bool:
    def probed(z: Any) -> Any:
        real = isinstance(z, Tensor) and (z.is_floating_point() or z.is_complex())
        return z.detach().clone().requires_grad_() if real and id(z) not in fixed else z

    args, kwargs = tree_map(probed, (args, kwargs))
    inputs = [z for z in tree_leaves((args, kwargs)) if isinstance(z, Tensor) and z.requires_grad]
    try:
        with torch.enable_grad():
            results = [z for z in tree_leaves(target(*args, **kwargs)) if isinstance(z, Tensor) and z.requires_grad]
            if inputs and results:
                total = sum(torch.view_as_real(z).sum() if z.is_complex() else z.sum() for z in results)
                torch.autograd.grad(total, inputs, allow_unused=True)  # type: ignore[arg-type]
    except (NotImplementedError, RuntimeError) as error:
        if FORKED in str(error):
            raise InputError(
                "torch computes no gradients in a process that was forked after gradients had been computed: start "
                "processes anew instead (multiprocessing's spawn, or --workers)"
            ) from None
        if no_memory(error):  # which says nothing of the operation
            raise
        return False
    return True


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
