"""Second-order rounding: optimal brain quantization in GPTQ's fixed order, then coordinate descent.

Both look for the codes that move a layer's output least: min tr (Q − W) H (Q − W)ᵀ for the Hessian H of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.quantizers.weights import Grid, decode, to_half_grid

PARTS = 8  # of the channels that are rounded together: one moves at a time
TOGETHER_DAMPING = 0.3  # of the mean of the metric's diagonal: 0.1 learns 256 images by heart in wide layers
SWEEPS = 2  # of coordinate descent; four leave half a per cent less error
FARTHEST = 2.0  # a scale is refitted by this factor at most
BLOCK = 32  # columns whose errors reach the weights beyond them all at once: memory is what limits a column's update

# Of weights (R, K), and the codes and grids that they have, continuous codes (R, K).
Rounder = Callable[[list[Tensor], list[Tensor], list[Grid]], list[Tensor]]


def place_obq(weight: Tensor, grid: Grid, hessian: Tensor) -> Tensor:
    """Continuous codes (O, K) whose rounding leaves little output error of `weight` (O, K) under `hessian` (G, K, K).

    The error of each rounded weight is spread over the weights of its output channel that are not rounded yet. A
    continuous code is where its weight stood, with the errors of those before it added, when it was rounded: how near
    it came to the other neighbour. G is the number of groups of the convolution; output channels are split evenly among
    them. `hessian` is positive definite. Weights are rounded in order of falling input power. Algorithm 1 of Frantar et
    al., "GPTQ", ICLR 2023 (arXiv 2210.17323).
    """
    return place_all([weight], [grid], hessian)[0]


def place_all(weights: Sequence[Tensor], grids: Sequence[Grid], hessian: Tensor) -> list[Tensor]:
    """`place_obq` of several weights (O_i, K) at once, each on a grid of its own, to the same bits: one factorization
    and one walk over the columns."""
    length = hessian.shape[1]
    order = hessian.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)[:, :, None]
    ordered = hessian.gather(1, order.expand_as(hessian)).gather(2, order.mT.expand_as(hessian))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
    upper = torch.linalg.cholesky(inverse, upper=True)

    rows = _Rows.of(grids, len(hessian))
    left = rows.columns(weights)
    rank = order.expand(-1, -1, left.shape[2])
    left = left.gather(1, rank)
    pivots = _array(upper.diagonal(dim1=1, dim2=2)[:, :, None])
    places = np.empty(left.shape, np.float32)
    for first in range(0, length, BLOCK):
        last = min(first + BLOCK, length)
        columns, within = _array(left[:, first:last]).copy(), _array(upper[:, first:last, first:last, None])
        errors = np.empty_like(columns)
        for k in range(last - first):
            column, place, error = columns[:, k], places[:, first + k], errors[:, k]
            np.divide(column, rows.scale, out=place)
            np.add(place, rows.zero, out=place)
            rows.clip(place)
            np.subtract(np.rint(place, out=error), rows.zero, out=error)
            np.subtract(column, np.multiply(error, rows.scale, out=error), out=error)
            np.divide(error, pivots[:, first + k], out=error)
            columns[:, k + 1 :] -= within[:, k, k + 1 :] * error[:, None]
        left[:, last:] -= rows.product(upper[:, first:last, last:].mT, errors)
    return rows.split(torch.empty_like(left).scatter(1, rank, torch.from_numpy(places).to(left.device)))


def descend(weight: Tensor, codes: Tensor, grid: Grid, hessian: Tensor, sweeps: int = SWEEPS) -> Tensor:
    """Continuous codes (O, K) whose rounding leaves no more output error of `weight` (O, K) than `codes` (O, K) do.

    Coordinate descent: in each of `sweeps`, every code moves to where the output error is least while the others stay.
    `hessian` (G, K, K) as for `place_obq`.
    """
    return descend_all([weight], [codes], [grid], hessian, sweeps)[0]


def descend_all(
    weights: Sequence[Tensor], codes: Sequence[Tensor], grids: Sequence[Grid], hessian: Tensor, sweeps: int = SWEEPS
) -> list[Tensor]:
    """`descend` of several weights (O_i, K) at once, each on a grid of its own, to the same bits."""
    length = hessian.shape[1]
    rows = _Rows.of(grids, len(hessian))
    wrong = [decode(code, grid) - weight for weight, code, grid in zip(weights, codes, grids, strict=True)]
    slope = rows.product(hessian, _array(rows.columns(wrong)))
    curvature = _array(hessian.diagonal(dim1=1, dim2=2)[:, :, None])
    settled = _array(rows.columns(codes)).copy()
    places = np.empty_like(settled)
    for first in [at for _ in range(sweeps) for at in range(0, length, BLOCK)]:
        last = min(first + BLOCK, length)
        pulls, within = _array(slope[:, first:last]).copy(), _array(hessian[:, first:last, first:last, None])
        steps = np.empty_like(pulls)
        for k in range(last - first):
            code, place, step = settled[:, first + k], places[:, first + k], steps[:, k]
            np.divide(pulls[:, k], rows.scale, out=place)
            np.divide(place, curvature[:, first + k], out=place)
            np.subtract(code, place, out=place)
            rows.clip(place)
            np.subtract(np.rint(place, out=step), code, out=step)
            np.add(code, step, out=code)
            np.multiply(step, rows.scale, out=step)
            pulls[:, k + 1 :] += within[:, k, k + 1 :] * step[:, None]
        slope += rows.product(hessian[:, :, first:last], steps)
    return rows.split(torch.from_numpy(places).to(slope.device))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Output channels on several grids side by side, for numpy: where one column follows from those before it, a call
    costs more than its arithmetic, and torch's calls cost several times as much.

    `scale`, `zero` and the largest code `most` are (G, R), R the channels of a group on all grids, of which each has
    one of the `sizes`.
    """

    scale: NDArray[np.float32]
    zero: NDArray[np.float32]
    most: NDArray[np.float32]
    sizes: list[int]

    @classmethod
    def of(cls, grids: Sequence[Grid], groups: int) -> _Rows:
        """The rows of grids for a Hessian of so many groups."""
        sizes = [len(grid.scale) // groups for grid in grids]
        scale, zero = (
            _array(torch.cat([getattr(grid, part).view(groups, -1) for grid in grids], 1))
            for part in ("scale", "zero_point")
        )
        return cls(scale, zero, np.repeat(np.array([grid.levels for grid in grids], np.float32), sizes), sizes)

    def columns(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors (O_i, K), one for every grid, as columns (G, K, R)."""
        groups, length = len(self.scale), tensors[0].shape[1]
        return torch.cat([tensor.float().view(groups, -1, length) for tensor in tensors], 1).mT.contiguous()

    def split(self, columns: Tensor) -> list[Tensor]:
        """The inverse of `columns`."""
        return [part.mT.reshape(-1, columns.shape[1]) for part in torch.split(columns, self.sizes, 2)]

    def clip(self, place: NDArray[np.float32]) -> None:
        """Moves places (G, R) that are beyond the first or last code there."""
        np.minimum(np.maximum(place, 0, out=place), self.most, out=place)

    def product(self, matrix: Tensor, columns: NDArray[np.float32]) -> Tensor:
        """A matrix (G, J, K) times columns (G, K, R), grid by grid: the last digits of a product may depend on how many
        columns there are, and what one grid is given is not to depend on the others."""
        parts = torch.split(torch.from_numpy(columns).to(matrix.device), self.sizes, 2)
        return torch.cat([matrix @ part.contiguous() for part in parts], 2)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def descend_together(
    weight: Tensor,
    codes: Sequence[Tensor],
    grids: Sequence[Grid],
    hessian: Tensor,
    metric: Tensor,
    sweeps: int = SWEEPS,
) -> list[tuple[Grid, Tensor]]:
    """`made_up_together`, an eighth of the channels at a time, each rounded as by `descend`."""

    def rounded(wanted: list[Tensor], codes: list[Tensor], grids: list[Grid]) -> list[Tensor]:
        return descend_all(wanted, codes, grids, hessian, sweeps=1)

    return made_up_together(weight, codes, grids, hessian, metric, rounded, PARTS, sweeps)


def made_up_together(
    weight: Tensor,
    codes: Sequence[Tensor],
    grids: Sequence[Grid],
    hessian: Tensor,
    metric: Tensor,
    rounded: Rounder,
    parts: int,
    sweeps: int,
) -> list[tuple[Grid, Tensor]]:
    """From codes (O, K) on each of several grids, a grid and continuous codes (O, K) whose rounding leaves little of
    tr G (Q − W) H (Q − W)ᵀ: here the errors of output channels act together, and may make up for each other. What one
    grid gets does not depend on the others.

    H is the `hessian` (1, K, K) of the inputs, G the `metric` (O, O), the second moment of the loss' gradient at the
    outputs; their Kronecker product stands for the Fisher information (Martens and Grosse, ICML 2015, arXiv
    1503.05671). One of `parts` of the channels moves at a time, in each of `sweeps`: the weights that would make up
    best for the errors of the others are `rounded`, and kept if they do.
    """
    damping = (TOGETHER_DAMPING * metric.diagonal().mean()).clamp_min(1e-30)
    metric = metric + damping * torch.eye(len(metric), device=metric.device)
    places, scales = [one.clone() for one in codes], [grid.scale.clone() for grid in grids]
    errors = [decode(one, grid) - weight for one, grid in zip(codes, grids, strict=True)]
    channels = torch.arange(len(weight), device=weight.device)
    for part in sweeps * [channels[first::parts] for first in range(min(parts, len(weight)))]:
        within = metric[part][:, part]
        factor, pulls = torch.linalg.cholesky(within), [metric[part] @ error for error in errors]
        wanted = [
            weight[part] + error[part] - torch.cholesky_solve(pull, factor)
            for error, pull in zip(errors, pulls, strict=True)
        ]
        own = [
            replace(grid, scale=scale[part], zero_point=grid.zero_point[part])
            for grid, scale in zip(grids, scales, strict=True)
        ]
        for at, place in enumerate(rounded(wanted, [place[part].round() for place in places], own)):
            refitted = refit_scale(wanted[at], place.round(), own[at], hessian)
            step = decode(place.round(), refitted) - weight[part] - errors[at][part]
            if (step @ hessian[0] * (2 * pulls[at] + within @ step)).sum() < 0:
                places[at][part], scales[at][part] = place, refitted.scale
                errors[at][part] += step
    return [(replace(grid, scale=scale), place) for grid, scale, place in zip(grids, scales, places, strict=True)]


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
