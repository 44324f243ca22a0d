"""Weights that make up for what the quantized part of the network before them did to their inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from recon.activity import activation_after, activity
from recon.compute import channels_last, fast, mixed_order
from recon.graph import is_plain_addition, only_call
from recon.moments import BATCH, POSITIONS, InputMoments, Sums, by_group, input_patches, mean_output
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
    halves = [Sums(), Sums()]
    lacking = mass = torch.zeros((), device=weight.device)
    for index, (errors, patches, active) in enumerate(_errors(task, name)):
        halves[index % 2] += Sums.of(errors, patches, active if active.shape[1] == 1 else None)
        lacking, mass = lacking + (active * errors).sum(2), mass + active.sum(2)
    hessian = moments.hessian(name)
    pulls = torch.stack([part.covariance() for part in (*halves, halves[0] + halves[1])])
    steps = torch.linalg.solve(hessian, pulls.transpose(2, 3)).transpose(2, 3)
    power = (pulls * steps).sum((2, 3))  # of the outputs' change
    agreed = (pulls[0] * steps[1]).sum((1, 2)) / (power[0] * power[1]).sqrt().clamp_min(1e-30)
    step = (agreed.clamp_min(0)[:, None, None] * steps[2]).reshape(weight.shape)
    return weight + step, (lacking / mass).flatten() - mean_output(step.flatten(1), moments.mean(name))


def _errors(task: UnitTask, name: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What outputs of layer `name` lack of the float ones (G, O / G, M), the patches (G, K, M) that it gets, and how
    much the outputs count (G, O / G, M), by batch of the images that teach."""
    layer, whole = task.layers[name], _is_added_to_the_output(task.float_module, name)
    activation, where = activation_after(task.module, name), task.store.device
    calls: list[tuple[Tensor, Tensor]] = []
    wanted: list[Tensor] = []
    hooks = (
        layer.register_forward_hook(lambda _, args, z: calls.append((args[0], z))),
        task.float_layers[name].register_forward_hook(lambda _, args, z: wanted.append(z)),
    )
    seen = 0
    try:
        for pick in torch.split(task.taught[mixed_order(task.taught)], BATCH):
            with fast(where):
                y = task.module(channels_last(task.x[pick].to(where)))
                float_y = task.float_module(channels_last(task.float_x[pick].to(where)))
            for (q, z), float_z in zip(calls, wanted, strict=True):
                error = float_y.float() - y.float() if whole and y.shape == z.shape else float_z.float() - z.float()
                active = activity(z, activation) if activation else torch.ones_like(error)
                patches = input_patches(layer, q.float())
                seen += patches.shape[2]
                yield by_group(layer, error), patches, by_group(layer, active)
            if seen >= POSITIONS:
                break
            calls.clear()
            wanted.clear()
    finally:
        for hook in hooks:
            hook.remove()


def _is_added_to_the_output(module: nn.Module, name: str) -> bool:
    """Nothing but additions lies between the output of layer `name`, called once, and that of `module`."""
    node = only_call(module, name)
    if node is None:
        return False
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "output":
            return True
        if not is_plain_addition(node):
            return False
    return False
