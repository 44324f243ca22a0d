"""Weights that make up for what the quantized part of the network before them did to their inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from recon.compute import channels_last, device, fast, mixed_order
from recon.moments import BATCH, POSITIONS, InputMoments, Sums, input_patches, mean_output
from recon.task import UnitTask


@torch.no_grad()
def corrected(task: UnitTask, name: str, moments: InputMoments) -> tuple[Tensor, Tensor]:
    """The weight (O, …) of layer `name` whose outputs for the inputs that it gets (`moments`) come nearest to those of
    the float unit, and what is to be added to its bias (O,).

    A linear regression: W + W E[e qᵀ] H⁻¹ with q the input patches, H their damped covariance, and e what they lack of
    the float ones; the asymmetric calibration of Li et al., "GPTAQ", ICML 2025 (arXiv 2504.02692), solved before the
    rounding. As much of it is taken as two halves of the images that teach agree on.
    """
    weight = task.layers[name].weight.detach()
    halves = _errors(task, name)
    errors = sum(halves, Sums())
    hessian = moments.hessian(name)
    rows = weight.flatten(1).view(len(hessian), -1, hessian.shape[1])
    one, other = (rows @ half.covariance() for half in halves)
    agreed = (one * other).sum((1, 2)) / (one.square().sum((1, 2)) * other.square().sum((1, 2))).sqrt().clamp_min(1e-30)
    share = 2 * agreed.clamp_min(0) / (1 + agreed.clamp_min(0))  # of both halves: Spearman-Brown
    pull = (rows @ errors.covariance()).transpose(1, 2)
    step = (share[:, None, None] * torch.linalg.solve(hessian, pull).transpose(1, 2)).reshape(weight.shape)
    lacking, _ = errors.means()
    return weight + step, mean_output(weight.flatten(1), lacking) - mean_output(step.flatten(1), moments.mean(name))


def _errors(task: UnitTask, name: str) -> list[Sums]:
    """Sums of e qᵀ over two halves of the images that teach: q the patches that layer `name` gets, e what they lack of
    those in the float unit."""
    layer = task.layers[name]
    given: list[Tensor] = []
    wanted: list[Tensor] = []
    hooks = [
        seen.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args[0]))
        for seen, calls in ((layer, given), (task.float_layers[name], wanted))
    ]
    halves = [Sums(), Sums()]
    try:
        for index, pick in enumerate(torch.split(task.taught[mixed_order(task.taught)], BATCH)):
            with fast():
                task.module(channels_last(task.x[pick].to(device())))
                task.float_module(channels_last(task.float_x[pick].to(device())))
            for q, x in zip(given, wanted, strict=True):
                patches = input_patches(layer, q.float())
                halves[index % 2] += Sums.of(input_patches(layer, x.float()) - patches, patches)
            given.clear()
            wanted.clear()
            if sum(half.count for half in halves) >= POSITIONS:
                break
    finally:
        for hook in hooks:
            hook.remove()
    return halves
