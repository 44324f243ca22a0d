"""Logits as large as the float network's: the last layer is scaled when its network is finished."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon.compute.store import Store
from recon.graph.network import Network
from recon.quantizers.attach import bias_of, rounding_of

STEP, MOST = 1.05, 14  # the factor goes up or down by as much, at most so often: to twice or half


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference ‖ logits) in nats, the mean over the batch of logits (N, classes)."""
    target, output = reference.float().log_softmax(-1).flatten(0, -2), logits.float().log_softmax(-1).flatten(0, -2)
    return F.kl_div(output, target, log_target=True, reduction="batchmean")


@torch.no_grad()
def unshrink(work: Network, network: Network, images: Tensor, store: Store) -> float:
    """Scales the last layer of `work` to where its logits diverge least from those of `network` on images (N, C, H, W)
    that taught no block; gives the factor.

    A block that gets noisy inputs and is fitted to outputs without noise learns to shrink, as any regression does
    (attenuation): MobileNetV2's logits are left about 1.2 times too small at 3 bits. A network that has learned its
    calibration images by heart is too sure of others when it is rounded: there the factor is less than 1.
    """
    last = work.layer(work.table.names[-1])
    scale, bias = rounding_of(last).log_scale, bias_of(last)
    scale_as_it_is, bias_as_it_is = scale.detach().clone(), bias.detach().clone()
    reference = store.map(network.model, images)
    last_unit, inputs = _last_unit(work, images, store)

    def put(factor: float) -> None:
        scale.data, bias.data = scale_as_it_is + math.log(factor), bias_as_it_is * factor

    def divergence(factor: float) -> float:
        put(factor)
        return float(kl_divergence(reference, store.map(last_unit, inputs)))

    best, found = 0, {0: divergence(1.0)}  # by steps up
    for step in (1, -1):  # the divergence is convex in the factor of the logits
        while abs(best + step) <= MOST:
            found[best + step] = divergence(STEP ** (best + step))
            if found[best + step] >= found[best]:
                break
            best += step
        if best:
            break
    factor: float = STEP ** (best + _vertex(*(found.get(best + step) for step in (-1, 0, 1))))
    put(factor)
    return factor


def _vertex(below: float | None, least: float | None, above: float | None) -> float:
    """Where a parabola through values at -1, 0 and 1 is least; 0 where one of them is unknown or none is larger."""
    if below is None or least is None or above is None or below + above <= 2 * least:
        return 0.0
    return (below - above) / (below - 2 * least + above) / 2


def _last_unit(network: Network, images: Tensor, store: Store) -> tuple[nn.Module, Tensor]:
    """What computes the logits with the last layer, and its inputs (N, …) for images (N, C, H, W)."""
    if not network.chained:
        return network.model, images
    *others, last = network.units
    inputs = images
    for unit in others:
        inputs = store.map(unit.module, inputs)
    return last.module, inputs
