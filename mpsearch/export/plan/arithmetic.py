"""Fixed-point arithmetic of integer runtimes, in numpy: TFLite's multipliers (gemmlowp), rounded as its kernels do."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int = NDArray[np.int64]


def multiplier(factor: float) -> tuple[int, int]:
    """(m, shift) with factor = m · 2^(shift − 31), m an int32 of 2^30 and more, or 0 (TFLite's QuantizeMultiplier)."""
    if factor == 0:
        return 0, 0
    fraction, exponent = math.frexp(factor)
    fixed = math.floor(fraction * 2**31 + 0.5)
    if fixed == 2**31:
        fixed, exponent = fixed // 2, exponent + 1
    if exponent < -31:
        return 0, 0
    if exponent > 30:
        return 2**31 - 1, 30
    return fixed, exponent


def multipliers(factors: ArrayLike) -> tuple[Int, Int]:
    """`multiplier` of each of the factors (O,)."""
    pairs = [multiplier(float(factor)) for factor in np.ravel(factors)]
    return np.array([fixed for fixed, _ in pairs], np.int64), np.array([shift for _, shift in pairs], np.int64)


def mean_multiplier(factor: float, count: int) -> tuple[int, int]:
    """`multiplier` of factor / count as TFLite's Mean has it: that of the factor, divided by the count in integers."""
    fixed, shift = multiplier(factor)
    more = min(count.bit_length() - 1, 32, 31 + shift)
    return (fixed << more) // count, shift - more


def multiply(x: Int, fixed: Int | int, shift: Int | int) -> Int:
    """round(x · fixed · 2^(shift − 31)) as TFLite's MultiplyByQuantizedMultiplier: a rounding, doubling high product,
    then a rounding shift, half away from zero."""
    fixed, shift = np.asarray(fixed, np.int64), np.asarray(shift, np.int64)
    product = (x << np.maximum(shift, 0)) * fixed
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.where(nudged >= 0, nudged >> 31, -((-nudged) >> 31))
    right = np.maximum(-shift, 0)
    mask = (np.int64(1) << right) - 1
    remainder, threshold = high & mask, (mask >> 1) + (high < 0)
    result: Int = (high >> right) + (remainder > threshold)
    return result
