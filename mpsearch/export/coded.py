"""Entropy-coded layers as bytes, and back: what each layer's codes are expected to be, then one stream of them all.

For every layer, in order: the number of tables (u8), for each of them the lowest code and the number of codes less one
(u8 each) and a byte of frequency for each code, then the layer's scales (i16 least step, u8 width, steps at that width)
and biases (i16 exponent, i32 least multiple, u8 width, multiples). Behind them all codes in one stream of a range coder
(`constriction`), to a whole number of 32-bit words: row by row, or, where there are two tables, column by column the
indices of those rows that are in the first quantizer, then of the others (see `recon.quantizers.trellis`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import constriction
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwmodel import MpsearchError
from hwmodel.size import packed_bytes
from mpsearch.export.codes import pack, unpack
from recon.quantizers.coded import ZERO, Frequencies, bias_steps, path_in, scale_of, scale_steps, symbols_on
from recon.quantizers.trellis import FOLLOWING, MIDDLE, Path, second_quantizer, steps_of

_TABLES, _CODES, _SCALES, _BIASES = map(struct.Struct, ("<B", "<BB", "<hB", "<hiB"))
_WORD = np.dtype("<u4")
_MOST_BITS = 32


@dataclass(frozen=True, slots=True)
class CodedLayer:
    """What a file holds of a layer: codes (O, K), scales (O,) and biases (B,)."""

    codes: NDArray[np.uint8]
    scale: Tensor
    bias: Tensor


def encode(layers: Sequence[CodedLayer]) -> bytes:
    """All layers as bytes."""
    parts, coder = [], constriction.stream.queue.RangeEncoder()
    for layer in layers:
        path = path_in(layer.codes)
        tables = [Frequencies.of(part) for part in symbols_on(path, layer.codes)]
        scales, (exponent, biases) = scale_steps(layer.scale), bias_steps(layer.bias)
        if not torch.equal(scale_of(scales.least + scales.above.astype(np.int64)), layer.scale.cpu()):
            raise MpsearchError("scales of entropy-coded layers must be powers of 2^(1/32)")
        parts.append(_TABLES.pack(len(tables)))
        for table in tables:
            parts += [_CODES.pack(table.lowest, len(table.halvings) - 1), table.halvings.tobytes()]
        parts += [_SCALES.pack(scales.least, scales.width), pack(scales.above, scales.width).tobytes()]
        parts += [_BIASES.pack(exponent, biases.least, biases.width), pack(biases.above, biases.width).tobytes()]
        for symbols, at in _stream(path, layer.codes):
            model = _model(tables[at])
            if model is not None and len(symbols):
                coder.encode(symbols.astype(np.int32) - tables[at].lowest, model)
    return b"".join([*parts, coder.get_compressed().astype(_WORD).tobytes()])


def _stream(path: Path | None, codes: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """What is coded of codes (O, K), on a path or on none, in order, and by which table."""
    if path is None:
        yield codes.ravel(), 0
        return
    for indices, second in zip(path.indices, path.second, strict=True):
        yield indices[~second], 0
        yield indices[second], 1


def decode(data: bytes, sizes: Sequence[tuple[int, int, int]]) -> list[CodedLayer]:
    """The inverse of `encode` for layers of so many codes, scales and biases. Raises ValueError where it is not."""
    heads, at = [], 0
    for _, channels, count in sizes:
        (most,), at = _read(_TABLES, data, at)
        if most not in (1, 2):
            raise ValueError(f"a layer of {most} tables")
        tables = []
        for farthest in (255,) if most == 1 else (2 * MIDDLE - 1, 2 * MIDDLE):  # the first quantizer ends at 126 steps
            (lowest, more), at = _read(_CODES, data, at)
            halvings, at = _bytes(data, at, more + 1)
            if lowest + more > farthest or halvings.min() == 255:
                raise ValueError("frequencies of codes that there are not")
            tables.append(Frequencies(lowest, halvings))
        (least, width), at = _read(_SCALES, data, at)
        steps, at = _whole(data, at, least, width, channels)
        (exponent, least, width), at = _read(_BIASES, data, at)
        multiples, at = _whole(data, at, least, width, count)
        with np.errstate(over="ignore"):
            bias = torch.from_numpy((multiples * np.exp2(float(exponent))).astype(np.float32))
            scale = scale_of(steps)
        if not (torch.isfinite(bias).all() and torch.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError("scales or biases that are no numbers to compute with")
        heads.append((tables, scale, bias))
    if (len(data) - at) % _WORD.itemsize:
        raise ValueError("a stream that ends inside a word")
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, _WORD, offset=at).astype(np.uint32))
    layers = []
    for (count, channels, _), (tables, scale, bias) in zip(sizes, heads, strict=True):
        try:
            codes = _decoded(coder, tables, channels, count // channels)
        except (AssertionError, ValueError) as error:
            raise ValueError(f"a stream that cannot be decoded ({error})") from None
        layers.append(CodedLayer(codes, scale, bias))
    if not coder.maybe_exhausted():
        raise ValueError("a stream that goes on behind the last code")
    return layers


def _decoded(
    coder: constriction.stream.queue.RangeDecoder, tables: Sequence[Frequencies], rows: int, length: int
) -> NDArray[np.uint8]:
    """The next layer's codes (O, K)."""
    models = [_model(table) for table in tables]

    def take(at: int, count: int) -> NDArray[np.int64]:
        model, lowest = models[at], tables[at].lowest
        return np.full(count, lowest) if model is None or not count else coder.decode(model, count) + lowest

    if len(tables) == 1:
        return take(0, rows * length).astype(np.uint8).reshape(rows, length)
    codes, states = np.empty((length, rows), np.uint8), np.zeros(rows, np.int64)
    for column in codes:
        second = second_quantizer(states)
        indices = np.empty(rows, np.int64)
        count = int(second.sum())
        indices[~second], indices[second] = take(0, rows - count), take(1, count)
        indices -= MIDDLE
        column[:] = steps_of(indices, second) + ZERO
        states = FOLLOWING[states, indices & 1]
    return np.ascontiguousarray(codes.T)


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
