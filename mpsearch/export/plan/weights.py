"""Weights as signed 8-bit integers with zero-point 0, and biases in steps of the accumulator.

Up to 7 bits this is exact: codes less their zero-point lie within ±127, and where zero-points count in halves (up to 4
bits) both are doubled and the scale is halved. Asymmetric 8-bit weights are rounded once more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.export.plan.records import Weight
from recon.quantizers.weights import QuantizedWeight

LARGEST = 127
MOST_STEPS = 2.0**30  # of a bias: beyond it, what the products add to it may pass 2^31


def is_halved(weight: QuantizedWeight) -> bool:
    """The layer's zero-points count in halves."""
    return bool((weight.grid.zero_point != weight.grid.zero_point.round()).any())


def signed(weight: QuantizedWeight) -> tuple[NDArray[np.int8], NDArray[np.float32], bool]:
    """int8 codes (O, …) and scales (O,) of a weight, and whether these are its values exactly."""
    zero = weight.grid.zero_point.cpu().numpy().astype(np.float64)
    scale: NDArray[np.float32] = weight.grid.scale.cpu().numpy().astype(np.float32)
    values: NDArray[np.float64] = weight.codes.cpu().numpy().astype(np.float64) - _by_channel(zero, weight.codes.dim())
    if is_halved(weight):
        values, scale = 2 * values, (scale / 2).astype(np.float32)
    if values.size and (values.min() < -LARGEST - 1 or values.max() > LARGEST):
        return *_rounded(weight), False
    return values.astype(np.int8), scale, True


def _rounded(weight: QuantizedWeight) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The weight on a symmetric grid by channel that covers it."""
    values = weight.dequantize().cpu().numpy()
    widest = np.abs(values.reshape(len(values), -1)).max(1)
    scale = np.maximum(widest / LARGEST, np.finfo(np.float32).tiny).astype(np.float32)
    codes = np.clip(np.rint(values / _by_channel(scale, values.ndim)), -LARGEST, LARGEST)
    return codes.astype(np.int8), scale


def layer_weight(stored: QuantizedWeight, bias: Tensor, input_scale: float | None, narrow: bool = False) -> Weight:
    """A layer's weight for integer arithmetic on inputs of `input_scale`; real inputs where that is None.

    Where `narrow`, codes of −128 become −127. A channel that is next to nothing, whose bias would have too many steps,
    gets a larger scale.
    """
    codes, scale, exact = signed(stored)
    real, values = _array(bias), _array(stored.dequantize())
    if input_scale is None or not len(real):
        return Weight(stored, values, codes, scale, exact, real)
    least = (np.abs(real.astype(np.float64)) / (input_scale * MOST_STEPS)).astype(np.float32)
    if narrow and codes.min() < -LARGEST:
        codes, exact = np.maximum(codes, -LARGEST).astype(np.int8), False
    few = scale < least
    if few.any():
        ratio = np.where(few, scale / np.maximum(least, np.finfo(np.float32).tiny), 1.0)
        codes = np.rint(codes * _by_channel(ratio, codes.ndim)).astype(np.int8)
        scale = np.maximum(scale, least)
        exact = False
    steps = np.rint(real.astype(np.float64) / (np.float64(np.float32(input_scale)) * scale.astype(np.float64)))
    return Weight(stored, values, codes, scale, exact, real, steps.astype(np.int32))


def float_weight(values: Tensor, bias: Tensor) -> Weight:
    """The weight of a layer that is not quantized."""
    real = _array(values)
    return Weight(None, real, np.empty(0, np.int8), np.empty(0, np.float32), True, _array(bias))


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().cpu().contiguous().numpy()
    return array


def _by_channel(values: NDArray[Any], dimensions: int) -> NDArray[Any]:
    return values.reshape(-1, *(1,) * (dimensions - 1))
