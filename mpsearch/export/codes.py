"""Codes of a few bits as bytes without gaps, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack(codes: NDArray[np.unsignedinteger], bits: int) -> NDArray[np.uint8]:
    """Codes (n,), each below 2^bits, as bytes (ceil(n·bits/8),): little-endian, without gaps."""
    planes = (codes[:, None] >> np.arange(bits, dtype=codes.dtype)) & 1
    return np.packbits(planes.astype(np.uint8).ravel(), bitorder="little")


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """The inverse of `pack`: `count` codes."""
    planes = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    weights = np.left_shift(1, np.arange(bits), dtype=np.int64)
    return np.asarray(planes @ weights, np.int64)
