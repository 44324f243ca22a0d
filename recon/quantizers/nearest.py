"""Plain rounding: the baseline of every comparison, and where weights stay that nobody learns."""

from __future__ import annotations

import torch
from torch import Tensor

from hwmodel import Precision
from recon.quantizers.coded import coded_grid
from recon.quantizers.weights import Grid, QuantizedWeight, encode, search_grid


def own_grid(weight: Tensor, precision: Precision, symmetric: bool = False) -> Grid:
    """The grid that suits a weight (O, …) best by itself: of the precision's bits, or of its rate."""
    if precision.rate:
        return coded_grid(weight, precision.rate)
    return search_grid(weight, precision.w, symmetric=symmetric)


def nearest(weight: Tensor, precision: Precision, symmetric: bool = False) -> QuantizedWeight:
    """Plain rounding of a weight (O, …) on its own grid."""
    grid = own_grid(weight, precision, symmetric)
    return QuantizedWeight(grid, encode(weight.detach().float(), grid).to(torch.uint8))
