"""Calibration without data: images whose batch-norm statistics are those that the network remembers.

Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020, arXiv 2001.00281.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hwmodel import InputError
from recon.compute.arithmetic import channels_last, device_of, fast
from recon.fit.optimizer import Annealed

STEPS = 150
RATE = 0.1
BATCH = 32
COARSE = 8  # images start as noise on a grid of this many pixels a cell: of the world, not of the television


def distill(
    model: nn.Module,
    input_size: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    count: int,
    seed: int,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """`count` images uint8 (N, H, W, 3) for a float `model` that takes (x / 255 − mean) / std; it stays as it is.

    Batches of 32 are fitted by Adam until mean and variance at every batch norm are near the running ones. `on_batch`
    is called with images done and in all. Raises InputError where the model has no batch norm with running statistics.
    """
    where = device_of(model)
    model = copy.deepcopy(model).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_var is not None]
    if not norms:
        raise InputError("--data distilled needs a model with batch norms that keep running statistics; give images")
    errors: list[Tensor] = []
    for norm in norms:
        norm.register_forward_pre_hook(lambda norm, args: errors.append(_mismatch(norm, args[0])))
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1).to(where) for values in (mean, std))
    generator = torch.Generator().manual_seed(seed)
    images: list[Tensor] = []
    while len(images) * BATCH < count:
        x = _noise(input_size, generator).to(where)
        optimizer = Annealed([([x], RATE)])
        for step in range(STEPS):
            errors.clear()
            with fast(where):
                model(channels_last(x))
            prior = x.mean((0, 2, 3)).square().mean() + (x.var((0, 2, 3)) - 1).square().mean()
            optimizer.step(prior + torch.stack(errors).sum(), step / STEPS)
        pixels = (255 * (x.detach() * scale + shift)).round().clamp(0, 255)
        images.append(pixels.permute(0, 2, 3, 1).to(torch.uint8).cpu())
        on_batch(min(len(images) * BATCH, count), count)
    return torch.cat(images)[:count].contiguous()


def _noise(size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """A batch of noise (32, 3, H, W) of unit variance, smooth over a few pixels."""
    channels, height, width = size
    coarse = torch.randn(BATCH, channels, -(-height // COARSE), -(-width // COARSE), generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return smooth / smooth.std()


def _mismatch(norm: _BatchNorm, x: Tensor) -> Tensor:
    """How far the mean and deviation of a batch norm's input (N, C, …) are from the running ones, in deviations."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    over = [dim for dim in range(x.dim()) if dim != 1]
    deviation = (norm.running_var + norm.eps).sqrt()
    away = (x.float().mean(over) - norm.running_mean) / deviation
    ratio = (x.float().var(over, correction=0) + norm.eps).sqrt() / deviation
    return away.square().mean() + (ratio - 1).square().mean()
