"""Calibration without data: images whose batch-norm statistics are those that the network remembers.

Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020, arXiv 2001.00281.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hwmodel import InputError
from recon.compute.arithmetic import channels_last, device_of, fast
from recon.fit.optimizer import Annealed
from recon.graph.capture import export_graph
from recon.graph.fold import NORM
from recon.graph.network import avoid_slow_kernels
from recon.graph.nodes import packet_of
from recon.graph.samples import Samples

STEPS = 60
RATE = 0.35  # at 0.1 it takes 150 steps to come as near
BATCH = 32
COARSE = 8  # images start as noise on a grid of this many pixels a cell: of the world, not of the television


def distill(
    model: nn.Module,
    input_size: tuple[int, ...],
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
    network = _norm_errors(model, input_size)
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1).to(where) for values in (mean, std))
    generator = torch.Generator().manual_seed(seed)
    images: list[Tensor] = []
    while len(images) * BATCH < count:
        x = _noise(input_size, generator).to(where)
        optimizer = Annealed([([x], RATE)])
        for step in range(STEPS):
            with fast(where):
                errors = network(channels_last(x))
            prior = x.mean((0, 2, 3)).square().mean() + (x.var((0, 2, 3)) - 1).square().mean()
            optimizer.step(prior + torch.stack(errors).sum(), step / STEPS)
        pixels = (255 * (x.detach() * scale + shift)).round().clamp(0, 255)
        images.append(pixels.permute(0, 2, 3, 1).to(torch.uint8).cpu())
        on_batch(min(len(images) * BATCH, count), count)
    return torch.cat(images)[:count].contiguous()


def _norm_errors(model: nn.Module, input_size: tuple[int, ...]) -> fx.GraphModule:
    """A module that gives, for images, how far the input of every batch norm is from what the norm remembers."""
    module = export_graph(model, Samples.noise(input_size).to(device_of(model)), "the model").module
    norms = [node for node in module.graph.nodes if packet_of(node) is NORM]
    if not norms:
        raise InputError("--data distilled needs a model with batch norms that keep running statistics; give images")
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    with module.graph.inserting_before(output):
        errors = [
            module.graph.call_function(_mismatch, (x, mean, variance, eps))
            for x, _, _, mean, variance, _, eps in (node.args for node in norms)
        ]
    output.args = (tuple(errors),)
    module.graph.eliminate_dead_code()
    avoid_slow_kernels(module)
    module.recompile()
    return module


def _noise(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A batch of noise (32, 3, H, W) of unit variance, smooth over a few pixels."""
    channels, height, width = size
    coarse = torch.randn(BATCH, channels, -(-height // COARSE), -(-width // COARSE), generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return smooth / smooth.std()


def _mismatch(x: Tensor, running_mean: Tensor, running_variance: Tensor, eps: float) -> Tensor:
    """How far the mean and deviation of a batch norm's input (N, C, …) are from the running ones, in deviations."""
    mean, variance = _Moments.apply(x, running_mean)
    deviation = (running_variance + eps).sqrt()
    ratio = (variance + eps).sqrt() / deviation
    found: Tensor = (mean / deviation).square().mean() + (ratio - 1).square().mean()
    return found


class _Moments(torch.autograd.Function):
    """Mean, less a constant near it, and variance (C,) of maps (N, C, …) by channel, from two sums. That of
    torch takes thirty times as long where channels are last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.movedim(1, -1).flatten(0, -2).float() - near
        mean = rows.mean(0)
        ctx.save_for_backward(x, near, mean)
        return mean, (rows.square().mean(0) - mean.square()).clamp_min(0)

    @staticmethod
    def backward(ctx: Any, by_mean: Tensor, by_variance: Tensor) -> tuple[Tensor, None]:
        x, near, mean = ctx.saved_tensors
        maps = x.movedim(1, -1)
        count = maps.numel() // maps.shape[-1]
        slope = 2 * by_variance / count
        gradient = torch.addcmul(by_mean / count - slope * (near + mean), maps.float(), slope)
        return gradient.to(x.dtype).movedim(-1, 1), None
