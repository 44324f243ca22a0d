"""Weights as signed 8-bit integers with zero-point 0, and biases in steps of the accumulator.

Up to 7 bits this is exact: codes less their zero-point lie within ±127, and where zero-points count in halves (up to 4
bits) both are doubled and the scale is halved. Asymmetric 8-bit weights are rounded once more.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.export.plan.records import Weight
from recon.quantizers.weights import Grid, QuantizedWeight, to_half_grid

BITS, LARGEST, MIDDLE = 8, 127, 128
MOST_STEPS = 2.0**30  # of a bias: beyond it, what the products add to it may pass 2^31


def is_halved(weight: QuantizedWeight) -> bool:
    """The layer's zero-points count in halves."""
    return bool((weight.grid.zero_point != weight.grid.zero_point.round()).any())


def signed(weight: QuantizedWeight) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 codes (O, …) with zero-point 0, and scales (O,), of a weight that `kept_exactly` holds for."""
    scale: NDArray[np.float32] = weight.grid.scale.cpu().numpy().astype(np.float32)
    values = _centred(weight)
    if is_halved(weight):
        values, scale = 2 * values, (scale / 2).astype(np.float32)
    return values.astype(np.int8), scale


def kept_exactly(weight: QuantizedWeight) -> bool:
    """The weight is int8 codes with zero-point 0, exactly."""
    values = _centred(weight) * (2 if is_halved(weight) else 1)
    return not values.size or bool(values.min() >= -LARGEST - 1 and values.max() <= LARGEST)


def layer_weight(stored: QuantizedWeight, bias: Tensor, input_scale: float | None, narrow: bool = False) -> Weight:
    """A layer's weight for integer arithmetic on inputs of `input_scale`; real inputs where that is None.

    Where `narrow`, codes of −128 become −127. A channel that is next to nothing, whose bias would have too many steps,
    gets a larger scale.
    """
    real, values = _array(bias), _array(stored.dequantize())
    if input_scale is None or not len(real):
        exact = kept_exactly(stored)
        codes, scale = signed(stored if exact else _symmetric(stored))
        return Weight(stored, stored, values, codes, scale, exact, real)
    kept = stored if kept_exactly(stored) else _symmetric(stored)
    if narrow and (_centred(kept) < -LARGEST).any():
        kept = QuantizedWeight(kept.grid, kept.codes.clamp_min(1))
    kept = _fewer_steps(kept, real, input_scale)
    codes, scale = signed(kept)
    steps = np.rint(real.astype(np.float64) / (np.float64(np.float32(input_scale)) * scale.astype(np.float64)))
    return Weight(stored, kept, values, codes, scale, kept is stored, real, steps.astype(np.int32))


def _symmetric(weight: QuantizedWeight) -> QuantizedWeight:
    """The weight on an 8-bit grid by channel with the zero-point in the middle."""
    values = weight.dequantize()
    scale = to_half_grid(values.flatten(1).abs().amax(1) / LARGEST)
    codes = torch.round(values / _by_channel(scale, values.dim())).clamp(-LARGEST, LARGEST) + MIDDLE
    return QuantizedWeight(Grid(BITS, scale, torch.full_like(scale, MIDDLE)), codes.to(torch.uint8))


def _fewer_steps(weight: QuantizedWeight, bias: NDArray[np.float32], input_scale: float) -> QuantizedWeight:
    """The weight with larger scales where the bias (O,) would have more than `MOST_STEPS` steps: as large as these are,
    the weights of such a channel do not count."""
    grid = weight.grid
    least = np.abs(bias.astype(np.float64)) * (2 if is_halved(weight) else 1) / (input_scale * MOST_STEPS)
    few = grid.scale.cpu() < torch.from_numpy(least.astype(np.float32))
    if not few.any():
        return weight
    wider = torch.where(few, to_half_grid(torch.from_numpy(2 * least).float()).to(grid.scale), grid.scale)
    zero, shape = grid.zero_point, weight.codes.dim()
    ratio = _by_channel(grid.scale / wider, shape)
    centre = _by_channel(zero, shape)
    codes = torch.round((weight.codes.float() - centre) * ratio + centre).clamp(0, grid.levels)
    return QuantizedWeight(Grid(grid.bits, wider, zero), codes.to(torch.uint8))


def float_weight(values: Tensor, bias: Tensor) -> Weight:
    """The weight of a layer that is not quantized."""
    real = _array(values)
    return Weight(None, None, real, np.empty(0, np.int8), np.empty(0, np.float32), True, _array(bias))


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().cpu().contiguous().numpy()
    return array


def _centred(weight: QuantizedWeight) -> NDArray[np.float64]:
    """Codes less their zero-points."""
    centre = _by_channel(weight.grid.zero_point.double(), weight.codes.dim())
    values: NDArray[np.float64] = (weight.codes.double() - centre).cpu().numpy()
    return values


def _by_channel(values: Tensor, dimensions: int) -> Tensor:
    return values.view(-1, *(1,) * (dimensions - 1))
