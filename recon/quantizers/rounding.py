"""Learned rounding of one layer's weight, as torch parametrizations.

Both classes hold the grid's zero-points fixed and give a layer a differentiable quantized weight:

`AdaRound` interpolates each weight between its two neighbours on the grid and is pushed to one of them by a
regulariser (Nagel et al., "Up or Down?", ICML 2020, arXiv 2004.10568; the rounding of BRECQ).

`StraightThrough` learns a continuous code whose rounding passes the gradient through (Bengio et al., 2013), together
with the scale (Esser et al., LSQ, ICLR 2020, arXiv 1902.08153). It is always hard, needs no regulariser and decides in
a tenth of the steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recon.quantizers.coded import to_log_grid
from recon.quantizers.weights import Grid, QuantizedWeight, decode, to_half_grid

RoundingName = Literal["straight-through", "adaround"]
EDGE = 1e-3  # of a code: what lies on the end of the range is still inside
GAMMA, ZETA = -0.1, 1.1  # the stretch of the rectified sigmoid (AdaRound, eq. 23)


class Rounding(nn.Module):
    """Base: a parametrization that replaces a layer's `weight` (O, …) by its quantized value.

    `code` is what is learned (O, …); the scale is `scale · exp(log_scale)`, per channel.
    """

    code: nn.Parameter

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.log_scale = nn.Parameter(torch.zeros_like(grid.scale))

    def integer(self) -> Tensor:
        """The codes in use (O, …), integral, float32."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """The quantized weight (O, …), differentiable; the float weight that it replaces is not read."""
        raise NotImplementedError

    @torch.no_grad()
    def freeze(self) -> QuantizedWeight:
        """The weight as it will be stored: integer codes and scales as files hold them."""
        to_stored = to_log_grid if self.grid.rate else to_half_grid
        scale = to_stored(self.grid.scale * self.log_scale.exp())
        return QuantizedWeight(replace(self.grid, scale=scale), self.integer().to(torch.uint8))


class StraightThrough(Rounding):
    """A continuous code, rounded in the forward pass; starts at `place` (O, …).

    Where codes are entropy-coded, neither they nor scales learn: steps do not know what bits cost. MobileNetV2 at
    1.5 MB has KL 0.056 with them and 0.048 without.
    """

    def __init__(self, place: Tensor, grid: Grid) -> None:
        super().__init__(grid)
        self.code = nn.Parameter(place.detach().clone(), requires_grad=not grid.rate)
        self.log_scale.requires_grad_(not grid.rate)

    def integer(self) -> Tensor:
        return self.code.detach().clamp(0, self.grid.levels).round()

    def forward(self, weight: Tensor) -> Tensor:
        decoded: Tensor = _Decode.apply(self.code, self.log_scale, self.grid)
        return decoded


class _Decode(torch.autograd.Function):
    """The weight (O, …) that rounded codes stand for, in few passes over memory: in a wide layer they cost as much as
    the layer itself."""

    @staticmethod
    def forward(ctx: Any, code: Tensor, log_scale: Tensor, grid: Grid) -> Tensor:
        shape = (-1,) + (1,) * (code.dim() - 1)
        scale = (grid.scale * log_scale.exp()).view(shape)
        weight = code.clamp(0, grid.levels).round_().sub_(grid.zero_point.view(shape)).mul_(scale)
        ctx.save_for_backward(code, weight, scale)
        ctx.levels = grid.levels
        return weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        code, weight, scale = ctx.saved_tensors
        codes, scales, _ = ctx.needs_input_grad
        slope = (gradient * weight).sum(tuple(range(1, code.dim()))) if scales else None
        edges = -EDGE, ctx.levels + EDGE
        return torch.ops.aten.hardtanh_backward(gradient * scale, code, *edges) if codes else None, slope, None


class AdaRound(Rounding):
    """Up or down from `place` (O, …), by a rectified sigmoid; the scale is not learned."""

    warmup = 0.2
    beta_start, beta_end = 20.0, 2.0

    def __init__(self, place: Tensor, grid: Grid) -> None:
        super().__init__(grid)
        self.log_scale.requires_grad_(False)
        self.register_buffer("floor", place.detach().floor())
        fraction = (place.detach() - place.detach().floor() - GAMMA) / (ZETA - GAMMA)
        self.code = nn.Parameter(torch.logit(fraction))
        self.floor: Tensor

    def up(self) -> Tensor:
        """How far each weight is rounded up (O, …), 0 … 1."""
        return (torch.sigmoid(self.code) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def integer(self) -> Tensor:
        return (self.floor + (self.code.detach() >= 0)).clamp(0, self.grid.levels)

    def forward(self, weight: Tensor) -> Tensor:
        return decode((self.floor + self.up()).clamp(0, self.grid.levels), self.grid)

    def regulariser(self, progress: float) -> Tensor:
        """What to add to the loss at `progress` (0 … 1) of the steps, before its weight."""
        if progress < self.warmup:
            return self.code.new_zeros(())
        done = (progress - self.warmup) / (1 - self.warmup)
        beta = self.beta_end + (self.beta_start - self.beta_end) * (1 - done)
        return (1 - (2 * self.up() - 1).abs().pow(beta)).sum()


def make_rounding(name: RoundingName, place: Tensor, grid: Grid) -> Rounding:
    """The rounding called `name` for a weight that stands at the continuous codes `place` (O, …) of a grid; codes that
    are to be entropy-coded stay."""
    return AdaRound(place, grid) if name == "adaround" and not grid.rate else StraightThrough(place, grid)
