"""A short end-to-end polish: after the blocks, the whole network is fitted to the float network's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from recon.attach import Rates, adam
from recon.compute import channels_last, device, fast
from recon.network import Network
from recon.rounding import cosine

CROP = 0.4


class PolishSettings(Rates, Protocol):
    """What the polish reads of the settings."""

    @property
    def polish_steps(self) -> int: ...
    @property
    def polish_factor(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def seed(self) -> int: ...


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference ‖ logits) in nats, the mean over the batch of logits (N, classes)."""
    target, output = reference.float().log_softmax(-1).flatten(0, -2), logits.float().log_softmax(-1).flatten(0, -2)
    return F.kl_div(output, target, log_target=True, reduction="batchmean")


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """x (N, C, H, W), each image mirrored half of the time and cropped at random to 60-100 % of its sides.

    The float network labels whatever it is shown, so this is more data for free: without it a few hundred images
    are learned by heart.
    """
    count = len(x)
    zoom = 1 - CROP * torch.rand(count, generator=generator)
    shift = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - zoom)[:, None]
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    place = torch.zeros(count, 2, 3)
    place[:, 0, 0], place[:, 1, 1], place[:, :, 2] = zoom * mirror, zoom, shift
    grid = F.affine_grid(place.to(x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def polish(
    work: Network,
    network: Network,
    images: Tensor,
    settings: PolishSettings,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains the roundings, scales and biases of `work` to give the logits of `network` on images (N, C, H, W).

    Knowledge distillation with the Kullback-Leibler divergence and no labels:
    Hinton et al., 2015 (arXiv 1503.02531).
    """
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = adam({name: work.layer(name) for name in work.table.names}, settings, settings.polish_factor)
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(settings.polish_steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * cosine(step / settings.polish_steps)
        pick = torch.randint(len(images), (settings.batch,), generator=generator)
        x = channels_last(augment(images[pick].to(device()), generator))
        with fast():
            with torch.no_grad():
                reference = network.model(x)
            loss = kl_divergence(reference, work.model(x))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        on_step(step + 1, loss.item())
