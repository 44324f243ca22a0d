"""The uniform affine weight quantizer: per-channel grids, their search, and the code ↔ weight maps.

A weight is `scale * (code - zero_point)` with an integer code in [0, 2^bits - 1] and a zero-point in the same range. An
integer one has zero on the grid (the convention of ONNX and of `torch.fake_quantize_per_channel_affine`). Up to 4 bits
one may count in halves: with zero between two levels 4 levels leave normally distributed weights 0.119 of their
variance instead of 0.150, 8 levels 0.0376 instead of 0.0408. Twice the code less twice the zero-point is an integer
either way, so integer arithmetic is exact.
Scales are kept at half-precision values, because that is what the packed file stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hwmodel import InputError
from hwmodel.precision import HALVED_BITS

SHRINK_STEPS = 60
SEARCHED = 2**18  # weights at a time: their errors are several tensors of that size, which a cache holds
TELLING = 4096  # weights of an output channel, of which there are more, that its range is chosen by
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
    where `halves` multiples of a half as far as the bits allow. The widest range is that of all weights; of a channel
    of more than twice `TELLING`, evenly spaced ones judge.
    """
    flat = weight.detach().flatten(1).float()
    apart = max(1, flat.shape[1] // TELLING)
    count = max(1, SEARCHED * apart // flat.shape[1])
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
    shrinks = torch.linspace(1.0, 0.25 if bits < 5 else 0.7, SHRINK_STEPS, device=flat.device)
    root = None if importance is None else importance.expand_as(flat)[:, ::apart].sqrt()
    tries = _Tries(flat[:, ::apart].contiguous(), root, levels)

    def attempt(index: Tensor) -> None:
        shrink = shrinks[index]
        scale = to_half_grid((high - low) * (shrink / levels))
        middle = (torch.full_like(low, 2 ** (bits - 1)),)
        tries.add(index, scale, middle if symmetric else _zero_points(low * shrink, scale, levels, step))

    everywhere = torch.zeros_like(low, dtype=torch.long)
    # With an importance, second-order rounding goes on from here: every third of the ranges, and those beside the best.
    for at in range(SHRINK_STEPS) if importance is None else range(0, SHRINK_STEPS, 3):
        attempt(everywhere + at)
    if importance is not None:
        best = tries.index
        for beside in (-1, 1):
            attempt((best + beside).clamp(0, SHRINK_STEPS - 1))
    return Grid(bits, tries.scale, tries.zero_point)


class _Tries:
    """Grids tried for a weight (O, K) of so many levels, and by output channel (O,) the one with the least squared
    error, weighed by the square of `root`: its `scale` and `zero_point`, and the `index` that it was given."""

    def __init__(self, weight: Tensor, root: Tensor | None, levels: int) -> None:
        self._weight, self._root, self._levels = weight, root, levels
        self._error = weight.new_full((len(weight),), torch.inf)
        self.scale, self.zero_point = torch.ones_like(self._error), torch.zeros_like(self._error)
        self.index = torch.zeros_like(self._error, dtype=torch.long)

    def add(self, index: Tensor, scale: Tensor, zeros: Sequence[Tensor]) -> None:
        """Tries a scale (O,) with each of `zeros` (O,)."""
        steps = self._weight / scale[:, None]
        for zero in zeros:
            whole = zero.floor()
            place = steps + (zero - whole)[:, None]  # at whole codes, as `encode` rounds
            wrong = place.round().clamp_((-whole)[:, None], (self._levels - whole)[:, None]).sub_(place)
            if self._root is not None:
                wrong.mul_(self._root)
            error = torch.linalg.vector_norm(wrong, dim=1).mul_(scale).square_()
            better = error < self._error
            self._error = torch.where(better, error, self._error)
            self.scale = torch.where(better, scale, self.scale)
            self.zero_point = torch.where(better, zero, self.zero_point)
            self.index = torch.where(better, index, self.index)


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
