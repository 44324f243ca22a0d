"""A short end-to-end polish: after the blocks, the whole network is fitted to the float network's output."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from recon.attach import bias_of, rounding_of
from recon.checkpoint import Progress
from recon.compute import batches, channels_last, device, fast
from recon.inputs import quantizers_of
from recon.network import Network
from recon.optimizer import Annealed, weight_parameters
from recon.settings import Settings
from recon.task import held_back

SAVE_EVERY = 100
NEAR, LEAST, MOST = 0.2, 0.1, 3.0
FEW, LONGEST = 512, 3.0
CROP = 0.5
MIXED = 0.5
FACTORS = (1.0, *(1 + step / 20 for step in range(-4, 17) if step))  # 0.8 to 1.8; of equals the first


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference ‖ logits) in nats, the mean over the batch of logits (N, classes)."""
    target, output = reference.float().log_softmax(-1).flatten(0, -2), logits.float().log_softmax(-1).flatten(0, -2)
    return F.kl_div(output, target, log_target=True, reduction="batchmean")


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """x (N, C, H, W), each image mirrored half of the time, cropped at random to 50-100 % of its sides, and in half of
    the cases mixed with a second one.

    The float network labels whatever it is shown, so this is more data for free: without it a few hundred images
    are learned by heart (Beyer et al., "A good teacher is patient and consistent", CVPR 2022, arXiv 2106.05237).
    """
    count = len(x)
    zoom = 1 - CROP * torch.rand(count, generator=generator)
    shift = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - zoom)[:, None]
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    place = torch.zeros(count, 2, 3)
    place[:, 0, 0], place[:, 1, 1], place[:, :, 2] = zoom * mirror, zoom, shift
    grid = F.affine_grid(place.to(x.device), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    share = torch.where(torch.rand(count, generator=generator) < MIXED, 0.5 * torch.rand(count, generator=generator), 0)
    share = share.to(x.device)[:, None, None, None]
    return (1 - share) * x + share * x.roll(1, 0)


def polish(
    work: Network,
    network: Network,
    images: Tensor,
    settings: Settings,
    progress: Progress | None,
    on_step: Callable[[int, int, float], None],
) -> None:
    """Trains the scales, biases and step sizes of `work` to give the logits of `network` on images (N, C, H, W).

    Codes stay: there are as many of them as weights, and they would learn a few hundred images by heart.

    First the last layer is scaled (`unshrink`).

    Knowledge distillation with the Kullback-Leibler divergence and no labels: Hinton et al., 2015 (arXiv 1503.02531).
    The farther the two are to begin with, the larger the rate and the number of steps: `settings.polish_rate` is that
    at `NEAR` nats, and half as far the number of steps begins to grow; with more than `FEW` images it grows as well,
    up to `LONGEST` times `settings.polish_steps`. The state is kept in `progress` every 100 steps.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    layers = [work.layer(name) for name in work.table.names]
    scales = [quantizer.log_scale for quantizer in quantizers_of(layers)]
    unshrink(work, network, images[held_back(len(images))])
    distance = _divergence(_logits(network, images), work, images) / NEAR
    rate = settings.polish_rate * min(max(distance, LEAST), MOST)
    longer = max(2 * distance, 1) * max(len(images) / FEW, 1)
    steps = round(settings.polish_steps * min(longer, LONGEST))
    for layer in layers:
        rounding_of(layer).code.requires_grad_(False)
    optimizer = Annealed([*weight_parameters(layers, 0.0, rate), (scales, rate)])
    first, saved = progress.polish() if progress else (0, {})
    if first:
        _restore(optimizer, generator, saved)
    for step in range(first, steps):
        pick = torch.randint(len(images), (settings.batch,), generator=generator)
        x = channels_last(augment(images[pick].to(device()), generator))
        with fast():
            with torch.no_grad():
                reference = network.model(x)
            loss = kl_divergence(reference, work.model(x))
        optimizer.step(loss, step / steps)
        if progress and (step + 1) % SAVE_EVERY == 0:
            progress.save_polish(step + 1, _state(optimizer, generator))
        on_step(step + 1, steps, loss.item())


@torch.no_grad()
def unshrink(work: Network, network: Network, images: Tensor) -> float:
    """Scales the last layer of `work` to where its logits diverge least from those of `network` on images (N, C, H, W)
    that taught no block; gives the factor.

    A block that gets noisy inputs and is fitted to outputs without noise learns to shrink, as any regression does
    (attenuation): MobileNetV2's logits are left about 1.2 times too small at 3 bits. For the polish, whose steps are
    small, that is far.
    """
    last = work.layer(work.table.names[-1])
    scale, bias = rounding_of(last).log_scale, bias_of(last)
    scale_as_it_is, bias_as_it_is = scale.detach().clone(), bias.detach().clone()
    reference = _logits(network, images)

    def scaled(factor: float) -> Network:
        scale.data, bias.data = scale_as_it_is + math.log(factor), bias_as_it_is * factor
        return work

    best = min(FACTORS, key=lambda factor: _divergence(reference, scaled(factor), images))
    scaled(best)
    return best


@torch.no_grad()
def _logits(network: Network, images: Tensor) -> list[Tensor]:
    """The logits of images (N, C, H, W), by batch."""
    with fast():
        return [network.model(x) for x in batches(images)]


def _divergence(reference: list[Tensor], work: Network, images: Tensor) -> float:
    """How far `work` is on images (N, C, H, W) from `reference` logits by batch, in nats."""
    pairs = zip(reference, _logits(work, images), strict=True)
    parts = [len(logits) * kl_divergence(target, logits) for target, logits in pairs]
    return float(torch.stack(parts).sum()) / len(images)


def _state(optimizer: Annealed, generator: torch.Generator) -> dict[str, Tensor]:
    """All that the next step depends on."""
    state = {"generator": generator.get_state()}
    for index, parameter in enumerate(optimizer.parameters()):
        state[f"{index}:value"] = parameter
        state |= {f"{index}:{key}": value for key, value in optimizer.adam.state[parameter].items()}
    return state


@torch.no_grad()
def _restore(optimizer: Annealed, generator: torch.Generator, state: dict[str, Tensor]) -> None:
    generator.set_state(state["generator"])
    for index, parameter in enumerate(optimizer.parameters()):
        parameter.copy_(state[f"{index}:value"])
        for key in ("exp_avg", "exp_avg_sq"):
            optimizer.adam.state[parameter][key] = torch.empty_like(parameter).copy_(state[f"{index}:{key}"])
        optimizer.adam.state[parameter]["step"] = state[f"{index}:step"]
