"""Second-order rounding: optimal brain quantization in GPTQ's fixed order, then coordinate descent.

Both look for the codes that move a layer's output least: min tr (Q − W) H (Q − W)ᵀ for the Hessian H of its inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recon.quantizer import Grid, decode, to_half_grid

PARTS = 8  # of the channels that are rounded together: one moves at a time
TOGETHER_DAMPING = 0.3  # of the mean of the metric's diagonal: 0.1 learns 256 images by heart in wide layers
SWEEPS = 2  # of coordinate descent; four leave half a per cent less error
FARTHEST = 2.0  # a scale is refitted by this factor at most
BLOCK = 128  # columns whose errors reach the weights beyond them all at once: memory is what limits a column's update


def place_obq(weight: Tensor, grid: Grid, hessian: Tensor) -> Tensor:
    """Continuous codes (O, K) whose rounding leaves little output error of `weight` (O, K) under `hessian` (G, K, K).

    The error of each rounded weight is spread over the weights of its output channel that are not rounded yet. A
    continuous code is where its weight stood, with the errors of those before it added, when it was rounded: how near
    it came to the other neighbour. G is the number of groups of the convolution; output channels are split evenly among
    them. `hessian` is positive definite. Weights are rounded in order of falling input power. Algorithm 1 of Frantar et
    al., "GPTQ", ICLR 2023 (arXiv 2210.17323).
    """
    channels, length = weight.shape
    groups = hessian.shape[0]
    power = hessian.diagonal(dim1=1, dim2=2)
    order = power.argsort(dim=1, descending=True, stable=True)
    ordered = hessian.gather(1, order[:, :, None].expand(-1, -1, length)).gather(
        2, order[:, None].expand(-1, length, -1)
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
    upper = torch.linalg.cholesky(inverse, upper=True)

    rows = order[:, None].expand(-1, channels // groups, -1)
    left = weight.float().view(groups, -1, length).gather(2, rows)
    scale = grid.scale.view(groups, -1)
    zero = grid.zero_point.view(groups, -1)
    places = torch.empty_like(left)
    for first in range(0, length, BLOCK):
        last = min(first + BLOCK, length)
        errors = left.new_empty(*left.shape[:2], last - first)
        for k in range(first, last):
            column = left[:, :, k]
            places[:, :, k] = (column / scale + zero).clamp(0, grid.levels)
            error = (column - (places[:, :, k].round() - zero) * scale) / upper[:, None, k, k]
            left[:, :, k:last] -= error[:, :, None] * upper[:, None, k, k:last]
            errors[:, :, k - first] = error
        left[:, :, last:] -= errors @ upper[:, first:last, last:]
    return torch.empty_like(places).scatter(2, rows, places).view(channels, length)


def descend(weight: Tensor, codes: Tensor, grid: Grid, hessian: Tensor, sweeps: int = SWEEPS) -> Tensor:
    """Continuous codes (O, K) whose rounding leaves no more output error of `weight` (O, K) than `codes` (O, K) do.

    Coordinate descent: in each of `sweeps`, every code moves to where the output error is least while the others stay.
    `hessian` (G, K, K) as for `place_obq`.
    """
    groups, length = hessian.shape[:2]
    scale = grid.scale.view(groups, -1)
    settled = codes.clone().view(groups, -1, length)
    slope = (decode(codes, grid) - weight).view(groups, -1, length) @ hessian
    curvature = hessian.diagonal(dim1=1, dim2=2)[:, None] * scale[:, :, None]
    places = torch.empty_like(settled)
    for first in [at for _ in range(sweeps) for at in range(0, length, BLOCK)]:
        last = min(first + BLOCK, length)
        moved = settled[:, :, first:last].clone()
        local = slope[:, :, first:last].clone()
        for k in range(first, last):
            at = k - first
            places[:, :, k] = (settled[:, :, k] - local[:, :, at] / curvature[:, :, k]).clamp(0, grid.levels)
            step = (places[:, :, k].round() - settled[:, :, k]) * scale
            settled[:, :, k] = places[:, :, k].round()
            local[:, :, at:] += step[:, :, None] * hessian[:, None, k, k:last]
        slope += ((settled[:, :, first:last] - moved) * scale[:, :, None]) @ hessian[:, first:last]
    return places.view_as(weight)


def descend_together(weight: Tensor, codes: Tensor, grid: Grid, hessian: Tensor, metric: Tensor) -> tuple[Grid, Tensor]:
    """A grid and continuous codes (O, K) whose rounding leaves little of tr G (Q − W) H (Q − W)ᵀ: here the errors of
    output channels act together, and may make up for each other.

    H is the `hessian` (1, K, K) of the inputs, G the `metric` (O, O), the second moment of the loss' gradient at the
    outputs; their Kronecker product stands for the Fisher information (Martens and Grosse, ICML 2015, arXiv
    1503.05671). An eighth of the channels moves at a time: the weights that would make up best for the errors of the
    others are rounded as by `descend`, and kept if they do.
    """
    damping = (TOGETHER_DAMPING * metric.diagonal().mean()).clamp_min(1e-30)
    metric = metric + damping * torch.eye(len(metric), device=metric.device)
    places, scale = codes.clone(), grid.scale.clone()
    error = decode(codes, grid) - weight
    channels = torch.arange(len(weight), device=weight.device)
    for part in SWEEPS * [channels[first::PARTS] for first in range(min(PARTS, len(weight)))]:
        within, pull = metric[part][:, part], metric[part] @ error
        wanted = weight[part] + error[part] - torch.linalg.solve(within, pull)
        own = Grid(grid.bits, scale[part], grid.zero_point[part])
        place = descend(wanted, places[part].round(), own, hessian, sweeps=1)
        own = refit_scale(wanted, place.round(), own, hessian)
        step = decode(place.round(), own) - weight[part] - error[part]
        if (step @ hessian[0] * (2 * pull + within @ step)).sum() < 0:
            places[part], scale[part] = place, own.scale
            error[part] += step
    return Grid(grid.bits, scale, grid.zero_point), places


def refit_scale(weight: Tensor, codes: Tensor, grid: Grid, hessian: Tensor) -> Grid:
    """The grid with the scales that leave the least output error of `weight` (O, K) under `hessian` (G, K, K) for codes
    (O, K) as they are: per output channel the projection ⟨q, w⟩ / ⟨q, q⟩."""
    groups, length = hessian.shape[:2]
    rounded = decode(codes, grid).view(groups, -1, length)
    reach = rounded @ hessian
    factor = (reach * weight.view(groups, -1, length)).sum(2) / (reach * rounded).sum(2)
    factor = factor.nan_to_num(1.0).clamp(1 / FARTHEST, FARTHEST).flatten()
    return Grid(grid.bits, to_half_grid(grid.scale * factor), grid.zero_point)
