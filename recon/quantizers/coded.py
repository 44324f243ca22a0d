"""Grids whose codes are meant to be entropy-coded: a finer step, no clipping, unlikely codes at the ends.

For normally distributed weights a uniform grid with as many levels as it takes leaves 0.59 of the error of the best
grid of 8 levels in the same bits, 0.48 of that of 16 (Gish and Pierce, "Asymptotically efficient quantizing", IEEE
Trans. Inf. Theory 14, 1968: 0.25 bits from the bound of any code). The step is the same multiple of the standard
deviation in all output channels of a layer, so that one table of frequencies serves them all, or two where codes are
on a path of the trellis: tables by input channel or by neighbouring codes save 0.3 % in MobileNetV2, less than they
cost in ResNet-20 (docs/coding.md).

Zero is code 128. Scales are powers of 2^(1/32), biases multiples of a power of two by layer, so that a channel takes
about two bytes beside its codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwmodel import InputError
from hwmodel.precision import CODED_BITS
from recon.quantizers.trellis import Path, path_of
from recon.quantizers.weights import SMALLEST_SCALE, Grid, QuantizedWeight

ZERO, FARTHEST = 128, 127  # the code of zero, and the most that any code is from it
PER_OCTAVE = 32  # scales: 1.1 % between neighbours at most, which is 1e-4 of a weight's power
BIAS_STEPS = 256  # of a layer's biases, root mean square
PER_HALVING = 16  # steps of a frequency's logarithm: within 0.03 bits
COUNTED = 2**24  # what frequencies are counted in
STEPS_TRIED = 12  # of the search for a step; the entropy falls by a bit as the step doubles
GOLDEN = 0.6180339887498949
_LOG2_WIDTH = math.log2(math.sqrt(2 * math.pi * math.e))  # a normal variable's entropy, of steps of one deviation


@dataclass(frozen=True, slots=True)
class Frequencies:
    """How often each of the codes `lowest`, `lowest + 1`, … is expected: 2^(−halvings / 16) of each (S,), as a share of
    their sum; 255 halvings mean never."""

    lowest: int
    halvings: NDArray[np.uint8]

    @classmethod
    def of(cls, codes: NDArray[np.uint8]) -> Frequencies:
        """Those of codes (n,), in one byte a code."""
        counts = np.bincount(codes, minlength=256)
        there = np.flatnonzero(counts)
        counts = counts[there[0] : there[-1] + 1]
        halvings = np.rint(PER_HALVING * np.log2(counts.max() / np.maximum(counts, 1))).clip(0, 254)
        return cls(int(there[0]), np.where(counts, halvings, 255).astype(np.uint8))

    def shares(self) -> NDArray[np.float64]:
        """The probability of each code (S,), of whole numbers: the same on every machine."""
        powers = np.rint(np.exp2(-self.halvings.astype(np.float64) / PER_HALVING) * COUNTED)
        whole = np.where(self.halvings == 255, 0.0, powers.clip(1))
        return np.asarray(whole / whole.sum())

    def bits(self, codes: NDArray[np.uint8]) -> float:
        """What codes (n,) take in the stream; infinite where one of them never is."""
        counts = np.bincount(codes, minlength=256)
        inside = counts[self.lowest : self.lowest + len(self.halvings)]
        if inside.sum() < counts.sum():
            return math.inf
        there = inside > 0
        shares = self.shares()[there]
        return float(-(inside[there] * np.log2(shares)).sum()) if shares.all() else math.inf


@dataclass(frozen=True, slots=True)
class Whole:
    """Whole numbers as they are stored for every channel: `least`, and `width` bits for what is above it."""

    least: int
    width: int
    above: NDArray[np.uint32]

    @classmethod
    def of(cls, values: NDArray[np.int64]) -> Whole:
        """Those of values (n,), less than 2^32 apart."""
        least = int(values.min(initial=0)) if not len(values) else int(values.min())
        above = (values - least).astype(np.uint32)
        return cls(least, int(above.max(initial=0)).bit_length(), above)


def coded_grid(weight: Tensor, rate: float) -> Grid:
    """The grid on which plain rounding of a weight (O, …) leaves codes of `rate` bits of entropy.

    Channels are not clipped: where 256 codes are too few for their range, the step grows and the entropy is less.
    """
    flat = weight.detach().flatten(1).float()
    deviation = flat.std(1, unbiased=False) if flat.shape[1] > 1 else flat.abs()[:, 0]
    farthest = flat.abs().amax(1)
    deviation = torch.maximum(deviation, 1e-3 * farthest).clamp_min(SMALLEST_SCALE)

    def grid(octaves: float) -> Grid:
        scale = torch.maximum(deviation * 2**octaves, farthest / FARTHEST)
        return Grid(CODED_BITS, scale, torch.full_like(scale, float(ZERO)), rate)

    octaves = _LOG2_WIDTH - rate
    for _ in range(STEPS_TRIED):
        excess = entropy(_codes(flat, grid(octaves))) - rate
        octaves += max(min(excess, 1.0), -1.0)
        if abs(excess) < 1e-3:
            break
    found = grid(octaves)
    return Grid(found.bits, to_log_grid(found.scale, farthest), found.zero_point, rate)


def _codes(flat: Tensor, grid: Grid) -> Tensor:
    return (torch.round(flat / grid.scale[:, None]) + ZERO).to(torch.uint8)


def entropy(codes: Tensor) -> float:
    """The entropy of codes (…), uint8, as if they were independent, in bits a code."""
    share = torch.bincount(codes.flatten().to(torch.int32), minlength=256).double() / codes.numel()
    return float(-(share * share.clamp_min(1e-300).log2()).sum())


def to_log_grid(scale: Tensor, farthest: Tensor | None = None) -> Tensor:
    """Scales (O,) at the nearest powers of 2^(1/32), float32; as much higher as it takes for codes of values up to
    `farthest` (O,) not to go beyond the ends."""
    if farthest is not None:
        scale = torch.maximum(scale, farthest / FARTHEST)
    steps = torch.round(PER_OCTAVE * scale.double().clamp_min(SMALLEST_SCALE).log2())
    if farthest is not None:
        steps += (torch.exp2(steps / PER_OCTAVE) * (FARTHEST + 0.49) < farthest).double()
    return scale_of(steps.cpu().numpy().astype(np.int64)).to(scale.device)


def spread_evenly(count: int) -> Tensor:
    """Numbers (count,) from 0 to 1, float64, of which any first ones are nearly evenly spread."""
    return torch.arange(count, dtype=torch.float64) * GOLDEN % 1


def scale_of(steps: NDArray[np.int64]) -> Tensor:
    """The scales 2^(steps / 32), float32."""
    return torch.from_numpy(np.exp2(steps / PER_OCTAVE).astype(np.float32))


def scale_steps(scale: Tensor) -> Whole:
    """How scales (O,) of `to_log_grid` are stored."""
    return Whole.of(np.rint(PER_OCTAVE * np.log2(scale.cpu().numpy().astype(np.float64))).astype(np.int64))


def to_bias_grid(bias: Tensor) -> Tensor:
    """Biases (O,) at the nearest multiples of a power of two, at most 1/256 of their root mean square, float32. Raises
    InputError where they are no finite numbers."""
    power = float(bias.double().square().mean()) if len(bias) else 0.0
    if not math.isfinite(power):
        raise InputError("biases must be finite to be stored")
    if not power:
        return bias.float()
    step = 2.0 ** max(math.floor(math.log2(math.sqrt(power) / BIAS_STEPS)), -100)
    return ((bias.double() / step).round() * step).float()


def bias_steps(bias: Tensor) -> tuple[int, Whole]:
    """How biases (O,) of `to_bias_grid` are stored: the exponent of the power of two, and its multiples."""
    values = bias.cpu().numpy().astype(np.float64)
    exponent = 0
    if values.any():
        mantissas, exponents = np.frexp(values[values != 0])
        whole = np.rint(np.abs(mantissas) * 2**24).astype(np.int64)
        trailing = np.log2((whole & -whole).astype(np.float64)).astype(np.int64)
        exponent = int((exponents - 24 + trailing).min())
    return exponent, Whole.of(np.rint(values / 2.0**exponent).astype(np.int64))


def path_in(codes: NDArray[np.uint8]) -> Path | None:
    """The path of the trellis that codes (O, K) are on, if any."""
    return path_of(codes.astype(np.int16) - ZERO)


def symbols_on(path: Path | None, codes: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """What is coded for codes (O, K), by the table that expects it: the codes (n,), or the indices of each quantizer
    where they are on a path."""
    return [codes.ravel()] if path is None else [path.indices[~path.second], path.indices[path.second]]


def symbols_of(codes: Tensor) -> list[NDArray[np.uint8]]:
    """`symbols_on` the path of codes (O, …), uint8."""
    rows = codes.flatten(1).cpu().numpy()
    return symbols_on(path_in(rows), rows)


def code_bits(weight: QuantizedWeight) -> float:
    """Bits of the codes alone: at their width, or in the stream."""
    if weight.grid.rate:
        return sum(Frequencies.of(part).bits(part) for part in symbols_of(weight.codes))
    return float(weight.codes.numel() * weight.grid.bits)


def coded_bytes(weight: QuantizedWeight, bias: Tensor) -> float:
    """Bytes of a layer in a file: the share of its codes in the stream, and what stands in front of it (see
    `mpsearch.export.coded`)."""
    parts = [(Frequencies.of(part), part) for part in symbols_of(weight.codes)]
    tables = sum(TABLE_BYTES + len(frequencies.halvings) for frequencies, _ in parts)
    scales, (_, biases) = scale_steps(weight.grid.scale), bias_steps(to_bias_grid(bias))
    packed = sum(-(-len(whole.above) * whole.width // 8) for whole in (scales, biases))
    return sum(frequencies.bits(part) for frequencies, part in parts) / 8 + tables + packed + LAYER_BYTES


LAYER_BYTES = 11  # number of tables, least scale and width, exponent, least bias and width
TABLE_BYTES = 2  # lowest code, number of codes
