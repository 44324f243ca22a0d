"""Weights that make up for what the quantized part of the network before them did to their inputs."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from recon.compute import channels_last, fast, mixed_order
from recon.graph import is_plain_addition
from recon.moments import BATCH, POSITIONS, InputMoments, Sums, input_patches, mean_output
from recon.task import UnitTask


@torch.no_grad()
def corrected(task: UnitTask, name: str, moments: InputMoments) -> tuple[Tensor, Tensor]:
    """The weight (O, …) of layer `name` whose outputs for the inputs that it gets (`moments`) come nearest to those of
    the float unit, and what is to be added to its bias (O,).

    A linear regression: W + E[e qᵀ] H⁻¹ with q the input patches, H their shrunk covariance, and e what the outputs
    lack of the float ones; the asymmetric calibration of Li et al., "GPTAQ", ICML 2025 (arXiv 2504.02692), solved
    before the rounding. As much of it is taken as two halves of the images that teach agree on. Where the outputs are
    only added to something to be those of the unit, as at the end of an inverted residual, the unit's lack is made up
    for, its shortcut's with it.
    """
    weight = task.layers[name].weight.detach()
    one, other = _errors(task, name)
    errors, hessian = one + other, moments.hessian(name)
    pulls = torch.stack([part.covariance() for part in (one, other, errors)])
    steps = torch.linalg.solve(hessian, pulls.transpose(2, 3)).transpose(2, 3)
    power = (pulls * steps).sum((2, 3))  # of the outputs' change
    agreed = (pulls[0] * steps[1]).sum((1, 2)) / (power[0] * power[1]).sqrt().clamp_min(1e-30)
    step = (agreed.clamp_min(0)[:, None, None] * steps[2]).reshape(weight.shape)
    lacking, _ = errors.means()
    return weight + step, lacking.flatten() - mean_output(step.flatten(1), moments.mean(name))


def _errors(task: UnitTask, name: str) -> tuple[Sums, Sums]:
    """Sums of e qᵀ over two halves of the images that teach: q the patches that layer `name` gets, e what outputs lack
    of the float ones."""
    layer, whole = task.layers[name], _is_added_to_the_output(task.float_module, name)
    calls: list[tuple[Tensor, Tensor]] = []
    wanted: list[Tensor] = []
    hooks = (
        layer.register_forward_hook(lambda _, args, z: calls.append((args[0], z))),
        task.float_layers[name].register_forward_hook(lambda _, args, z: wanted.append(z)),
    )
    halves, where = [Sums(), Sums()], task.store.device
    try:
        for index, pick in enumerate(torch.split(task.taught[mixed_order(task.taught)], BATCH)):
            with fast(where):
                y = task.module(channels_last(task.x[pick].to(where)))
                float_y = task.float_module(channels_last(task.float_x[pick].to(where)))
            for (q, z), float_z in zip(calls, wanted, strict=True):
                error = float_y.float() - y.float() if whole and y.shape == z.shape else float_z.float() - z.float()
                halves[index % 2] += Sums.of(_by_group(layer, error), input_patches(layer, q.float()))
            calls.clear()
            wanted.clear()
            if halves[0].count + halves[1].count >= POSITIONS:
                break
    finally:
        for hook in hooks:
            hook.remove()
    return halves[0], halves[1]


def _by_group(layer: nn.Conv2d | nn.Linear, z: Tensor) -> Tensor:
    """Outputs z of `layer` as (G, O / G, M), M = N × positions."""
    if isinstance(layer, nn.Linear):
        return z.flatten(0, -2).T[None]
    return z.transpose(0, 1).flatten(1).view(layer.groups, -1, z[:, 0].numel())


def _is_added_to_the_output(module: nn.Module, name: str) -> bool:
    """Nothing but additions lies between the output of layer `name`, called once, and that of `module`."""
    nodes = [node for node in module.graph.nodes if node.target == name] if isinstance(module, fx.GraphModule) else []
    if len(nodes) != 1:
        return False
    node = nodes[0]
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "output":
            return True
        if not is_plain_addition(node):
            return False
    return False
