"""Second-order rounding: optimal brain quantization in GPTQ's fixed order, then coordinate descent.

Both look for the codes that move a layer's output least: min tr (Q − W) H (Q − W)ᵀ for the Hessian H of its inputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.quantizers.weights import Grid, decode, to_half_grid

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
    scale, zero = (_array(part.view(groups, -1)) for part in (grid.scale, grid.zero_point))
    pivots = _array(upper.diagonal(dim1=1, dim2=2)[:, None])
    places = np.empty(left.shape, np.float32)
    for first in range(0, length, BLOCK):
        last = min(first + BLOCK, length)
        columns, within = _array(left[:, :, first:last]), _array(upper[:, first:last, first:last])
        errors = np.zeros_like(columns)
        for k in range(last - first):
            at = first + k
            column = columns[:, :, k] - _dot(errors[:, :, :k], within[:, :k, k])
            places[:, :, at] = (column / scale + zero).clip(0, grid.levels)
            errors[:, :, k] = (column - (np.rint(places[:, :, at]) - zero) * scale) / pivots[:, :, at]
        left[:, :, last:] -= torch.from_numpy(errors).to(left.device) @ upper[:, first:last, last:]
    return torch.empty_like(left).scatter(2, rows, torch.from_numpy(places).to(left.device)).view(channels, length)


def descend(weight: Tensor, codes: Tensor, grid: Grid, hessian: Tensor, sweeps: int = SWEEPS) -> Tensor:
    """Continuous codes (O, K) whose rounding leaves no more output error of `weight` (O, K) than `codes` (O, K) do.

    Coordinate descent: in each of `sweeps`, every code moves to where the output error is least while the others stay.
    `hessian` (G, K, K) as for `place_obq`.
    """
    groups, length = hessian.shape[:2]
    scale = grid.scale.view(groups, -1)
    slope = (decode(codes, grid) - weight).view(groups, -1, length) @ hessian
    curvature = _array(hessian.diagonal(dim1=1, dim2=2)[:, None] * scale[:, :, None])
    settled, factor = _array(codes.view(groups, -1, length)).copy(), _array(scale)
    places = np.empty_like(settled)
    for first in [at for _ in range(sweeps) for at in range(0, length, BLOCK)]:
        last = min(first + BLOCK, length)
        outside, within = _array(slope[:, :, first:last]), _array(hessian[:, first:last, first:last])
        steps = np.zeros_like(outside)
        for k in range(last - first):
            at = first + k
            pull = outside[:, :, k] + _dot(steps[:, :, :k], within[:, :k, k])
            places[:, :, at] = (settled[:, :, at] - pull / curvature[:, :, at]).clip(0, grid.levels)
            rounded = np.rint(places[:, :, at])
            steps[:, :, k] = (rounded - settled[:, :, at]) * factor
            settled[:, :, at] = rounded
        slope += torch.from_numpy(steps).to(slope.device) @ hessian[:, first:last]
    return torch.from_numpy(places).to(weight.device).view_as(weight)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    """`tensor` for numpy: where one column follows from those before it, a call costs more than its arithmetic, and
    torch's calls cost several times as much."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def _dot(rows: NDArray[np.float32], column: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (G, R, k) times a column (G, k): (G, R)."""
    product: NDArray[np.float32] = np.matmul(rows, column[:, :, None])[:, :, 0]
    return product


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
        own = replace(grid, scale=scale[part], zero_point=grid.zero_point[part])
        place = descend(wanted, places[part].round(), own, hessian, sweeps=1)
        own = refit_scale(wanted, place.round(), own, hessian)
        step = decode(place.round(), own) - weight[part] - error[part]
        if (step @ hessian[0] * (2 * pull + within @ step)).sum() < 0:
            places[part], scale[part] = place, own.scale
            error[part] += step
    return replace(grid, scale=scale), places


def output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """What `difference` (O, K) of a weight does to the output channels (O,): d H dᵀ under `hessian` (G, K, K)."""
    groups, length = hessian.shape[:2]
    rows = difference.view(groups, -1, length)
    return ((rows @ hessian) * rows).sum(2).flatten()


def refit_scale(weight: Tensor, codes: Tensor, grid: Grid, hessian: Tensor) -> Grid:
    """The grid with the scales that leave the least output error of `weight` (O, K) under `hessian` (G, K, K) for codes
    (O, K) as they are: per output channel the projection ⟨q, w⟩ / ⟨q, q⟩."""
    groups, length = hessian.shape[:2]
    rounded = decode(codes, grid).view(groups, -1, length)
    reach = rounded @ hessian
    factor = (reach * weight.view(groups, -1, length)).sum(2) / (reach * rounded).sum(2)
    factor = factor.nan_to_num(1.0).clamp(1 / FARTHEST, FARTHEST).flatten()
    return replace(grid, scale=to_half_grid(grid.scale * factor))
