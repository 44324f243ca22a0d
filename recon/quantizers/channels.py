"""A step for every channel of what a depthwise convolution reads: its accumulators are separate, so that the step of an
input channel times the scale of a weight's channel is still one factor for each output channel.

Behind SiLU or a sum one channel may reach a hundred while the others live between -0.28 and 1, and one step for all
leaves these nothing. It is the equalization of Nagel et al., "Data-Free Quantization" (ICCV 2019, arXiv 1906.04721), or
SmoothQuant's (Xiao et al., ICML 2023, arXiv 2211.10438), on the tensor itself, so that no function in front of it needs
to let factors pass. Steps are powers of two apart: exact in any arithmetic, four bits each in a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwmodel.layer import LayerSpec
from hwmodel.precision import HALVING_BITS
from recon.quantizers.inputs import InputGrid, round_to_grid
from recon.quantizers.weights import to_half_grid

MOST_HALVINGS = 2**HALVING_BITS - 1
ENOUGH = 2048  # values of each channel, of all samples seen
PER_BATCH = 512
SLACK = (1.0, 2**-0.25, 2**-0.5, 2**-0.75)  # of the widest channel's step
TINY = 1e-30


class ChannelValues:
    """Some of the values seen of every channel of maps (N, C, *size), and the ends of all. A channel's error counts by
    the `power` (C,) of the weights that read it."""

    def __init__(self, power: Tensor) -> None:
        self.power = power.cpu()
        self.parts: list[Tensor] = []
        self.low = self.high = torch.zeros(len(power))

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Sees the values of x (N, C, *size)."""
        values = x.float().transpose(0, 1).flatten(1)
        low, high = values.aminmax(dim=1)
        self.low, self.high = torch.minimum(self.low, low.cpu()), torch.maximum(self.high, high.cpu())
        if len(self.parts) * PER_BATCH < ENOUGH:
            at = torch.linspace(0, values.shape[1] - 1, min(PER_BATCH, values.shape[1])).long()
            self.parts.append(values[:, at.to(values.device)].cpu())

    def grid(self, bits: int) -> InputGrid:
        """The grid, all channels of one zero-point, with the least weighted squared error on the values seen."""
        levels, values = 2**bits - 1, torch.cat(self.parts, 1)
        best, found = math.inf, InputGrid(bits, 1.0, 0)
        for zero in self._zero_points(levels):
            steps = torch.maximum(-self.low / max(zero, TINY), self.high / max(levels - zero, TINY))
            for slack in SLACK:
                scale = float(to_half_grid(steps.max() * slack))
                error, halvings = self._halvings(values, InputGrid(bits, scale, zero))
                if error < best:
                    best, found = error, InputGrid(bits, scale, zero, tuple(halvings.tolist()))
        return found

    def _zero_points(self, levels: int) -> list[int]:
        """Some zero-points with which every channel's ends are on the grid, from none to half of it and the one with
        the least sum of squared steps."""
        if not self.low.any():
            return [0]
        if not self.high.any():
            return [levels]
        zeros = torch.arange(1, levels)[:, None]
        steps = torch.maximum(-self.low / zeros, self.high / (levels - zeros))
        return [int((steps.square() * self.power).sum(1).argmin()) + 1]

    def _halvings(self, values: Tensor, grid: InputGrid) -> tuple[float, Tensor]:
        """How often every channel's step is halved (C,) for the least error on its values (C, M), and the sum of the
        errors."""
        least = torch.full((len(values),), math.inf)
        best = torch.zeros(len(values), dtype=torch.long)
        ends = torch.stack([self.low, self.high], 1)
        for halvings in range(MOST_HALVINGS + 1):
            factor = 2.0**halvings
            error = (round_to_grid(values * factor, grid) / factor - values).square().mean(1)
            # A far end that no value seen here stands for counts once.
            error += (round_to_grid(ends * factor, grid) / factor - ends).square().sum(1) / values.shape[1]
            better = error < least
            least, best = torch.where(better, error, least), torch.where(better, halvings, best)
        return float((least * self.power).sum()), best


def split_halvings(layers: Iterable[LayerSpec], halvings: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    """The halvings of every layer of several, from all of them one after another; none of a layer with one step."""
    found, start = [], 0
    for layer in layers:
        end = start + (layer.in_channels if layer.channel_steps else 0)
        found.append(tuple(halvings[start:end].tolist()))
        start = end
    return found
