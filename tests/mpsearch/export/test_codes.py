"""Packing codes without gaps."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hwmodel import WEIGHT_BITS
from mpsearch.export.codes import pack, unpack


@given(st.sampled_from(WEIGHT_BITS), st.integers(0, 1001), st.integers(0, 2**32 - 1))
def test_codes_are_packed_without_gaps(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    packed = pack(codes, bits)
    assert len(packed) == -(-count * bits // 8)
    assert np.array_equal(unpack(packed, bits, count), codes)


def test_the_packing_is_little_endian() -> None:
    assert pack(np.array([1, 2, 3, 0], np.uint8), 2).tolist() == [0b00111001]
    assert pack(np.array([5, 3], np.uint8), 3).tolist() == [0b00011101]
