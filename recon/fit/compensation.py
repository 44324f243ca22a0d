"""Weights that make up for what the quantized part of the network before them did to their inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from recon.compute.arithmetic import fast, mixed_order, picked
from recon.fit.task import UnitTask
from recon.graph.layers import watched
from recon.graph.patterns import is_plain_addition, leading_to, only_call, with_pooled_maps
from recon.statistics.moments import BATCH, InputMoments, Sums, mean_output, some_positions, weights_of
from recon.statistics.slopes import activation_after, slope_weight


@torch.no_grad()
def compensated(task: UnitTask, name: str) -> tuple[InputMoments, Tensor, Tensor]:
    """What layer `name` gets, and for that, from the images that teach, its weight (O, …) whose outputs come nearest to
    those of the float unit, and what is to be added to its bias (O,).

    A linear regression: W + E[e qᵀ] H⁻¹ with q the input patches, H their shrunk covariance, and e what the outputs
    lack of the float ones; the asymmetric calibration of Li et al., "GPTAQ", ICML 2025 (arXiv 2504.02692), solved
    before the rounding. As much of it is taken as two halves of the images agree on. Where the outputs are
    only added to something to be those of the unit, as at the end of an inverted residual, the unit's lack is made up
    for, its shortcut's with it.
    """
    weight, moments = task.layers[name].weight.detach(), InputMoments()
    halves = [Sums(), Sums()]
    lacking = mass = torch.zeros((), device=weight.device)
    activation = activation_after(task.float_module, name)
    for index, (patches, outputs, errors, pooled, teaches) in enumerate(_seen(task, name)):
        active = slope_weight(outputs, activation) if activation else None
        moments.add(patches, active, pooled)
        if teaches:
            halves[index % 2] += Sums.of(errors, patches, weights_of(active))
            counts = torch.ones_like(errors) if active is None else active
            lacking, mass = lacking + (counts * errors).sum(2), mass + counts.sum(2)
        if moments.enough:
            break
    pulls = torch.stack([part.covariance() for part in (*halves, halves[0] + halves[1])])
    steps = moments.solve(pulls)
    power = (pulls * steps).sum((2, 3))  # of the outputs' change
    agreed = (pulls[0] * steps[1]).sum((1, 2)) / (power[0] * power[1]).sqrt().clamp_min(1e-30)
    step = (agreed.clamp_min(0)[:, None, None] * steps[2]).reshape(weight.shape)
    return moments, weight + step, (lacking / mass).flatten() - mean_output(step.flatten(1), moments.mean())


def _seen(task: UnitTask, name: str) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None, bool]]:
    """The patches (G, K, M) that layer `name` gets, its outputs (G, O / G, M), what they lack of the float ones, and
    maps whose means the patches are, by batch of the images that teach, then of those that do not."""
    layer, where = task.layers[name], task.store.device
    whole = len(task.targets) == 1 and _is_added_to_the_output(task.float_module, name)
    module = task.module if whole else leading_to(task.module, name)
    float_module = None if whole else leading_to(task.float_module, name)
    module, maps = with_pooled_maps(module, [name])
    calls: list[tuple[Tensor, Tensor]] = []
    wanted: list[Tensor] = []
    pooled: list[Tensor | None] = []
    generator = torch.Generator().manual_seed(0)
    teaching = torch.split(task.taught[mixed_order(task.taught)], BATCH)
    judging = torch.split(task.held_back, BATCH) if task.early_stopping else ()
    for index, pick in enumerate((*teaching, *judging)):
        with (
            fast(where),
            watched({name: layer}, lambda _, q, z: calls.append((q, z))),
            watched({name: task.float_layers[name]}, lambda _, __, z: wanted.append(z)),
            watched(maps, lambda _, __, x: pooled.append(x)),
        ):
            (y, *_) = module(*picked(task.x, pick, where))
            if float_module is None:
                wanted.extend(picked(task.targets, pick, where))
            else:
                float_module(*picked(task.float_x, pick, where))
        for (q, z), float_z, of in zip(calls, wanted, pooled or [None] * len(calls), strict=True):
            positions = some_positions(layer, z, generator)
            float_part, part = (layer.by_group(value, positions).float() for value in (float_z, y if whole else z))
            outputs = layer.by_group(z, positions).float() if whole else part
            patches = layer.patches(q, positions).float()
            yield patches, outputs, float_part - part, of, index < len(teaching)
        calls.clear()
        wanted.clear()
        pooled.clear()


def _is_added_to_the_output(module: fx.GraphModule, name: str) -> bool:
    """Nothing but additions of its own shape lies between the output of layer `name`, called once, and that of
    `module`."""
    node = only_call(module, name)
    if node is None:
        return False
    shape = node.meta.get("shape")
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "output":
            return True
        if not is_plain_addition(node) or node.meta.get("shape") != shape:
            return False
    return False
