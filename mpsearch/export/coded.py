"""Entropy-coded layers as bytes, and back: what each layer's codes are expected to be, then one stream of them all.

For every layer, in order: the lowest code and the number of codes less one (u8 each), a byte of frequency for each,
then its scales (i16 least step, u8 width, steps at that width) and biases (i16 exponent, i32 least multiple, u8 width,
multiples). Behind them all codes in one stream of a range coder (`constriction`), to a whole number of 32-bit words.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import constriction
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwmodel import MpsearchError
from hwmodel.size import packed_bytes
from mpsearch.export.codes import pack, unpack
from recon.quantizers.coded import Frequencies, bias_steps, scale_of, scale_steps

_CODES, _SCALES, _BIASES = struct.Struct("<BB"), struct.Struct("<hB"), struct.Struct("<hiB")
_WORD = np.dtype("<u4")
_MOST_BITS = 32


@dataclass(frozen=True, slots=True)
class CodedLayer:
    """What a file holds of a layer: codes (n,), scales (O,) and biases (B,)."""

    codes: NDArray[np.uint8]
    scale: Tensor
    bias: Tensor


def encode(layers: Sequence[CodedLayer]) -> bytes:
    """All layers as bytes."""
    parts, coder = [], constriction.stream.queue.RangeEncoder()
    for layer in layers:
        frequencies = Frequencies.of(torch.from_numpy(layer.codes))
        scales, (exponent, biases) = scale_steps(layer.scale), bias_steps(layer.bias)
        if not torch.equal(scale_of(scales.least + scales.above.astype(np.int64)), layer.scale.cpu()):
            raise MpsearchError("scales of entropy-coded layers must be powers of 2^(1/32)")
        parts += [_CODES.pack(frequencies.lowest, len(frequencies.halvings) - 1), frequencies.halvings.tobytes()]
        parts += [_SCALES.pack(scales.least, scales.width), pack(scales.above, scales.width).tobytes()]
        parts += [_BIASES.pack(exponent, biases.least, biases.width), pack(biases.above, biases.width).tobytes()]
        model = _model(frequencies)
        if model is not None:
            coder.encode(layer.codes.astype(np.int32) - frequencies.lowest, model)
    return b"".join([*parts, coder.get_compressed().astype(_WORD).tobytes()])


def decode(data: bytes, sizes: Sequence[tuple[int, int, int]]) -> list[CodedLayer]:
    """The inverse of `encode` for layers of so many codes, scales and biases. Raises ValueError where it is not."""
    heads, at = [], 0
    for _, channels, count in sizes:
        (lowest, more), at = _read(_CODES, data, at)
        halvings, at = _bytes(data, at, more + 1)
        if lowest + more > 255 or halvings.min() == 255:
            raise ValueError("frequencies of codes that there are not")
        (least, width), at = _read(_SCALES, data, at)
        steps, at = _whole(data, at, least, width, channels)
        (exponent, least, width), at = _read(_BIASES, data, at)
        multiples, at = _whole(data, at, least, width, count)
        with np.errstate(over="ignore"):
            bias = torch.from_numpy((multiples * np.exp2(float(exponent))).astype(np.float32))
            scale = scale_of(steps)
        if not (torch.isfinite(bias).all() and torch.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError("scales or biases that are no numbers to compute with")
        heads.append((Frequencies(lowest, halvings), scale, bias))
    if (len(data) - at) % _WORD.itemsize:
        raise ValueError("a stream that ends inside a word")
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, _WORD, offset=at).astype(np.uint32))
    layers = []
    for (count, _, _), (frequencies, scale, bias) in zip(sizes, heads, strict=True):
        model = _model(frequencies)
        try:
            codes = np.zeros(count, np.int32) if model is None else coder.decode(model, count)
        except (AssertionError, ValueError) as error:
            raise ValueError(f"a stream that cannot be decoded ({error})") from None
        layers.append(CodedLayer((codes + frequencies.lowest).astype(np.uint8), scale, bias))
    if not coder.maybe_exhausted():
        raise ValueError("a stream that goes on behind the last code")
    return layers


def _model(frequencies: Frequencies) -> constriction.stream.model.Categorical | None:
    """The coder's model; None where there is one code only, which needs no bits."""
    if len(frequencies.halvings) == 1:
        return None
    return constriction.stream.model.Categorical(frequencies.shares(), perfect=False)


def _read(form: struct.Struct, data: bytes, at: int) -> tuple[tuple[int, ...], int]:
    if at + form.size > len(data):
        raise ValueError("a head that is cut off")
    return form.unpack_from(data, at), at + form.size


def _bytes(data: bytes, at: int, count: int) -> tuple[NDArray[np.uint8], int]:
    if at + count > len(data):
        raise ValueError("a head that is cut off")
    return np.frombuffer(data, np.uint8, count, at), at + count


def _whole(data: bytes, at: int, least: int, width: int, count: int) -> tuple[NDArray[np.int64], int]:
    if width > _MOST_BITS:
        raise ValueError(f"numbers of {width} bits")
    packed, at = _bytes(data, at, packed_bytes(count, width))
    return least + unpack(packed, width, count).astype(np.int64), at
