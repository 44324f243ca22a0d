"""The uniform affine quantizer of a layer's input activations: per tensor, with a learned step size.

An activation is `scale * (code - zero_point)` with codes in [0, 2^bits - 1], as for weights. The step size is learned
with the straight-through gradient (Esser et al., LSQ, ICLR 2020, arXiv 1902.08153, eq. 3); the zero-point is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon.compute.arithmetic import parts
from recon.quantizers.weights import to_half_grid

BINS = 2048
SHRINK_STEPS = 80
ENOUGH = 2**20  # values, all of the first images, that tell how the step size should change


@dataclass(frozen=True, slots=True)
class InputGrid:
    """The quantization grid of one layer's inputs, as it is stored: a half-precision `scale`, an integer zero-point,
    and how often each channel's step is half of the scale (C,), none where one step serves all."""

    bits: int
    scale: float
    zero_point: int
    halvings: tuple[int, ...] = ()


@torch.no_grad()
def round_to_grid(x: Tensor, grid: InputGrid) -> Tensor:
    """Activations x rounded to the grid, in the arithmetic of x."""
    low = -grid.zero_point
    high = low + 2**grid.bits - 1
    if not grid.halvings:
        return _rounded(x, grid.scale, low, high)
    factors = channel_factors(grid.halvings, x)
    return _rounded(x * factors, grid.scale, low, high).div_(factors)


def channel_factors(halvings: Sequence[int], x: Tensor) -> Tensor:
    """What the channels of maps x (N, C, *size) are multiplied by before they are rounded to one scale (C, 1, …)."""
    return (2.0 ** torch.tensor(halvings, device=x.device)).to(x.dtype).view(-1, *(1,) * (x.dim() - 2))


def _rounded(x: Tensor, scale: float, low: float, high: float) -> Tensor:
    """x rounded to multiples of `scale`, from `low` to `high` of them, in the arithmetic of x."""
    rounded = torch.empty_like(x)
    for result, part in parts(rounded, x):
        torch.mul(part, 1 / scale, out=result).round_().clamp_(low, high).mul_(scale)
    return rounded


class InputQuantizer(nn.Module):
    """Rounds activations x (N, …) to `bits` bits.

    Where it has a `cap`, they come as they are before a ReLU that cuts off there, and clipping to the range does what
    ReLU does.

    The share `dropped` of the channels of every sample passes unquantized: everything until there is a grid, some in
    training (QDrop, Wei et al., ICLR 2022, arXiv 2203.05740, which drops single elements: on a CPU their random numbers
    cost more than the convolution).
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.zero_point = 0
        self.halvings: tuple[int, ...] = ()
        self.cap: float | None = None
        self.dropped = 1.0
        self.generator: torch.Generator | None = None

    def set_grid(self, grid: InputGrid) -> None:
        """Takes over a grid's scale, zero-point and halvings."""
        self.halvings = grid.halvings
        self.set_step_size(math.log(grid.scale), grid.zero_point)

    def set_step_size(self, log_scale: float, zero_point: float) -> None:
        """Sets the step size and enables quantization."""
        self.log_scale.data.fill_(log_scale)
        self.zero_point = int(zero_point)
        self.dropped = 0.0

    def leave_unquantized(self, share: float, generator: torch.Generator | None = None) -> None:
        """Lets `share` of the channels of every sample pass unquantized, drawn by `generator`."""
        self.dropped, self.generator = share, generator

    def freeze(self) -> InputGrid:
        """The grid as it will be stored."""
        scale = float(to_half_grid(self.log_scale.detach().exp()))
        return InputGrid(self.bits, scale, self.zero_point, self.halvings)

    def activated(self, x: Tensor) -> Tensor:
        """What is to be rounded: x behind the ReLU that the quantizer stands for."""
        return x if self.cap is None else F.hardtanh(x, 0.0, self.cap)

    def codes(self, z: Tensor) -> Tensor:
        """The codes, less the zero-point, of activations counted in steps, z as it is before the ReLU."""
        assert self.cap is not None
        cap = self.cap * (-self.log_scale).exp()
        codes: Tensor = _RoundRectified.apply(z, cap, 2**self.bits - 1 - self.zero_point)
        return codes

    def forward(self, x: Tensor) -> Tensor:
        if self.dropped == 1:
            return self.activated(x)
        factors = channel_factors(self.halvings, x) if self.halvings else None
        scaled = x if factors is None else x * factors
        rounded: Tensor = _RoundToGrid.apply(scaled, self.log_scale, self.bits, self.zero_point, self.cap)
        rounded = rounded if factors is None else rounded / factors
        if not self.dropped:
            return rounded
        x = self.activated(x)
        whole = x.shape[:2] if x.dim() == 4 else x.shape
        kept = (torch.rand(whole, generator=self.generator) >= self.dropped).to(x.device)
        return torch.where(kept.view(*whole, *(1,) * (x.dim() - len(whole))), rounded, x)


class _RoundRectified(torch.autograd.Function):
    """round(min(relu(z), cap)), at most `high`, in two passes over memory, with the straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, cap: Tensor, high: int) -> Tensor:
        ctx.cap, ctx.top = float(cap), min(float(cap), high + 0.5)
        ctx.save_for_backward(z)
        codes = torch.empty_like(z)
        for code, part in parts(codes, z):
            torch.round(part, out=code).clamp_(0, min(round(ctx.top), high))
        return codes

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (z,) = ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(gradient, z, 0.0, ctx.top)
        if ctx.cap > ctx.top or not ctx.needs_input_grad[1]:
            return passed, None, None
        # Half-precision sums of one dimension are exact enough and several times as fast as a sum in float32, which
        # copies everything first.
        beyond = torch.ops.aten.threshold_backward(gradient, z, ctx.cap)
        return passed, beyond.sum(1).sum(dtype=torch.float32), None


class _RoundToGrid(torch.autograd.Function):
    """`round_to_grid` behind ReLU with a `cap`, if any, with the gradients of LSQ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_scale: Tensor, bits: int, zero_point: int, cap: float | None) -> Tensor:
        scale = float(log_scale.exp())
        low, high = float(-zero_point), float(2**bits - 1 - zero_point)
        ctx.cap, ctx.inside = cap, ((low - 0.5) * scale, (high + 0.5) * scale)
        ctx.passed = ctx.inside if cap is None else (0.0, min(cap, ctx.inside[1]))
        if cap is not None:
            low, high = 0.0, min(high, float(x.new_tensor(cap).mul_(1 / scale).round_()))
        rounded = _rounded(x, scale, low, high)
        ctx.save_for_backward(x, rounded)
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, rounded = ctx.saved_tensors
        values, scales, *_ = ctx.needs_input_grad
        passed = torch.ops.aten.hardtanh_backward(gradient, x, *ctx.passed) if values else None
        if not scales:
            return passed, None, None, None, None
        count = max(1, min(len(x), len(x) * ENOUGH // x.numel()))
        slope = torch.zeros((), device=x.device)
        for some, on_grid, change in parts(x[:count], rounded[:count], gradient[:count]):
            # ∂x̂/∂log s is x̂ − x inside the range and x̂ outside; sums as above.
            some = some if ctx.cap is None else some.clamp(0, ctx.cap)
            inside = torch.ops.aten.hardtanh_backward(some, some, *ctx.inside)
            slope += (on_grid - inside).mul_(change).sum(-1).sum(dtype=torch.float32)
        return passed, slope * (len(x) / count), None, None, None


class Histogram:
    """Counts of the values seen (…), in `BINS` bins that are widened as values need it."""

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.counts = torch.zeros(BINS)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Counts the values of x."""
        low, high = (float(value) for value in x.float().aminmax())
        low, high = min(self.low, low), max(self.high, high)
        if (low, high) != (self.low, self.high) and self.counts.any():
            moved = torch.zeros(BINS)
            index = ((self.centres() - low) / (high - low) * BINS).long().clamp(0, BINS - 1)
            self.counts = moved.index_add_(0, index, self.counts)
        self.low, self.high = low, high
        if high > low:
            self.counts += torch.histc(x.float(), BINS, low, high).cpu()

    def centres(self) -> Tensor:
        """The middle of every bin (BINS,)."""
        return self.low + (torch.arange(BINS) + 0.5) * ((self.high - self.low) / BINS)

    def grid(self, bits: int) -> InputGrid:
        """The grid with the least squared rounding error on the values seen, by search over shrunken ranges."""
        levels = 2**bits - 1
        centres, weights = self.centres(), self.counts
        best, found = math.inf, InputGrid(bits, 1.0, 0)
        for shrink in torch.linspace(1.0, 0.15 if bits < 5 else 0.5, SHRINK_STEPS).tolist():
            scale = float(to_half_grid(torch.tensor((self.high - self.low) * shrink / levels)))
            exact = -self.low * shrink / scale
            for zero in {min(max(int(side), 0), levels) for side in (math.floor(exact), math.ceil(exact))}:
                rounded = (centres / scale).round().clamp(-zero, levels - zero) * scale
                error = float(((rounded - centres).square() * weights).sum())
                if error < best:
                    best, found = error, InputGrid(bits, scale, zero)
        return found
