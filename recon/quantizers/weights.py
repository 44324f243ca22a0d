"""The uniform affine weight quantizer: per-channel grids, their search, and the code ↔ weight maps.

A weight is `scale * (code - zero_point)` with an integer code in [0, 2^bits - 1] and a zero-point in the same range. An
integer one has zero on the grid (the convention of ONNX and of `torch.fake_quantize_per_channel_affine`). Up to 4 bits
one may count in halves: with zero between two levels 4 levels leave normally distributed weights 0.119 of their
variance instead of 0.150, 8 levels 0.0376 instead of 0.0408. Twice the code less twice the zero-point is an integer
either way, so integer arithmetic is exact.
Scales are kept at half-precision values, because that is what the packed file stores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hwmodel import InputError
from hwmodel.precision import HALVED_BITS

SHRINK_STEPS = 60
SEARCHED = 2**18  # weights at a time: their errors are several tensors of that size, which a cache holds
FACTORS = tuple(1.08**step for step in range(-9, 5))  # 0.5 to 1.36
SHIFTS = (-2, -1, 0, 1, 2)  # steps of the zero-point
SMALLEST_SCALE = 2.0**-24  # the smallest positive half-precision number


@dataclass(frozen=True, slots=True)
class Grid:
    """The quantization grid of one layer: `bits`, and per output channel (O,) `scale` and `zero_point`.

    Where the codes are meant to be entropy-coded, `rate` is about how many bits each of them takes; else it is 0.
    """

    bits: int
    scale: Tensor
    zero_point: Tensor
    rate: float = 0.0

    @property
    def levels(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A layer's weight as it is stored: a grid and uint8 codes in the weight's own shape (O, …)."""

    grid: Grid
    codes: Tensor

    def dequantize(self) -> Tensor:
        """The float32 weight (O, …)."""
        return decode(self.codes.float(), self.grid)


def to_half_grid(scale: Tensor) -> Tensor:
    """Rounds scales (O,) to positive half-precision values, kept in float32. Raises InputError on overflow."""
    half = scale.clamp_min(SMALLEST_SCALE).half().float()
    if not torch.isfinite(half).all():
        raise InputError("weights are too large for half-precision scales (65504 at most); rescale the model")
    return half


def codes_at(weight: Tensor, grid: Grid) -> Tensor:
    """Where a weight (O, …) stands on a grid: continuous codes (O, …), not clipped."""
    shape = (-1,) + (1,) * (weight.dim() - 1)
    return weight.float() / grid.scale.view(shape) + grid.zero_point.view(shape)


def encode(weight: Tensor, grid: Grid) -> Tensor:
    """Nearest codes (O, …) of a weight (O, …), as float32."""
    shape = (-1,) + (1,) * (weight.dim() - 1)
    whole = grid.zero_point.floor()
    code = torch.round(weight / grid.scale.view(shape) + (grid.zero_point - whole).view(shape)) + whole.view(shape)
    return code.clamp(0, grid.levels)


def decode(codes: Tensor, grid: Grid) -> Tensor:
    """The weight (O, …) that codes (O, …) stand for."""
    shape = (-1,) + (1,) * (codes.dim() - 1)
    return (codes - grid.zero_point.view(shape)) * grid.scale.view(shape)


def search_grid(
    weight: Tensor, bits: int, importance: Tensor | None = None, symmetric: bool = False, halves: bool = False
) -> Grid:
    """The grid with the least (weighted) squared rounding error, by search over shrunken min-max ranges.

    `weight` is (O, …); `importance`, if given, is non-negative and broadcasts to the flattened weight (O, K): the
    diagonal of the loss' Hessian, so that the search minimises Σ importance · (Q(w) − w)². A constant or all-zero
    channel gets a grid on which it is exact up to the half-precision scale, unless `symmetric`: then the zero-point
    is 2^(bits − 1) everywhere, as where weights are signed integers without one. Zero-points are integers, or
    where `halves` multiples of a half as far as the bits allow.
    """
    flat = weight.detach().flatten(1).float()
    count = max(1, SEARCHED // flat.shape[1])
    if len(flat) > count:
        parts = torch.split(flat, count)
        shares = [None] * len(parts) if importance is None else torch.split(importance.expand_as(flat), count)
        found = [search_grid(part, bits, share, symmetric, halves) for part, share in zip(parts, shares, strict=True)]
        scale, zero_point = torch.cat([grid.scale for grid in found]), torch.cat([grid.zero_point for grid in found])
        return Grid(bits, scale, zero_point)
    low = flat.amin(1).clamp_max(0)
    high = flat.amax(1).clamp_min(0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    levels, step = 2**bits - 1, _step(bits) if halves else 1.0
    best_error = torch.full_like(low, torch.inf)
    best_scale = torch.ones_like(low)
    best_zero = torch.zeros_like(low)
    for shrink in torch.linspace(1.0, 0.25 if bits < 5 else 0.7, SHRINK_STEPS).tolist():
        scale = to_half_grid((high - low) * (shrink / levels))
        zeros = (
            (torch.full_like(low, 2 ** (bits - 1)),) if symmetric else _zero_points(low * shrink, scale, levels, step)
        )
        for zero in zeros:
            grid = Grid(bits, scale, zero)
            squared = (decode(encode(flat, grid), grid) - flat).square_()
            error = (squared if importance is None else squared * importance).sum(1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
            best_zero = torch.where(better, zero, best_zero)
    return Grid(bits, best_scale, best_zero)


def nearby_grids(grid: Grid, symmetric: bool = False) -> Grid:
    """For every output channel in turn the grids around its own, coarser and finer ones with the zero-point where it
    is and, unless `symmetric`, up to two steps beside it: (O × tries,) scales and zero-points."""
    shifts = (0,) if symmetric else SHIFTS
    factor = torch.tensor(FACTORS, device=grid.scale.device).repeat_interleave(len(shifts))
    shift = _step(grid.bits) * torch.tensor(shifts, device=grid.scale.device).repeat(len(FACTORS))
    zero = (grid.zero_point[:, None] + shift).clamp(0, grid.levels).flatten()
    return replace(grid, scale=to_half_grid((grid.scale[:, None] * factor).flatten()), zero_point=zero)


def _step(bits: int) -> float:
    """Between zero-points that count in halves as far as the bits allow."""
    return 0.5 if bits <= HALVED_BITS else 1.0


def _zero_points(low: Tensor, scale: Tensor, levels: int, step: float) -> tuple[Tensor, Tensor]:
    """The two multiples of `step` next to the exact zero-point: at 2 bits the choice matters."""
    exact = -low / scale / step
    return (step * exact.floor()).clamp(0, levels), (step * exact.ceil()).clamp(0, levels)
