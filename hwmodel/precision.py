"""Bit-widths and rates: of one layer, and of a whole network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hwmodel.errors import InputError

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)
FLOAT_BITS = 32
CODED_BITS = 8  # of codes that are stored entropy-coded: arithmetic and integer exports take them as they are
RATES = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
LEAST_RATE, RATE_STEP = 0.5, 0.125
HALVED_BITS = 4  # up to as many, zero-points of weights count in halves: at 8 levels that takes 8 % off the error
HALVING_BITS = 4  # of how often the step of an input channel is halved


@dataclass(frozen=True, slots=True, order=True)
class Precision:
    """Bits of a layer's weights and of its input activations; 32 means float.

    Where the codes of weights are stored entropy-coded, `rate` is about how many bits each of them takes in the file, a
    multiple of 1/8, and `w` is 8; it is 0 where they are stored with `w` bits.
    """

    w: int
    a: int = FLOAT_BITS
    rate: float = 0.0

    def __post_init__(self) -> None:
        if self.rate and (self.w != CODED_BITS or not is_rate(self.rate)):
            raise InputError(f"a rate is {LEAST_RATE} to {CODED_BITS} bits in eighths, of 8-bit codes; got {self.rate}")
        for what, bits in (("weight", self.w), ("activation", self.a)):
            if bits not in (*WEIGHT_BITS, FLOAT_BITS):
                raise InputError(f"{what} bits must be one of 2-8 (or 32 for float), got {bits}")

    def __str__(self) -> str:
        return f"R{self.rate:g}A{self.a}" if self.rate else f"W{self.w}A{self.a}"

    @property
    def stored(self) -> float:
        """Bits that a weight takes in a file: the rate, or the width, which is whole."""
        return self.rate or self.w

    @property
    def arithmetic(self) -> Precision:
        """The widths that are computed with, however the codes are stored."""
        return Precision(self.w, self.a)

    @property
    def short(self) -> str:
        """`4`, or `4/8` where activations are quantized; with a rate `r2.5`."""
        weights = f"r{self.rate:g}" if self.rate else f"{self.w}"
        return weights if self.a == FLOAT_BITS else f"{weights}/{self.a}"

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Reads `W4A8`, or `R2.5A8` with a rate. Raises InputError for anything else."""
        match = re.fullmatch(r"(?:[Ww](\d+)|[Rr](\d(?:\.\d{1,3})?))[Aa](\d+)", text.strip(), re.ASCII)
        if not match or (match[2] and not float(match[2])):
            raise InputError(f"a precision looks like W4A8, or R2.5A8 where codes are entropy-coded; got {text!r}")
        return cls(int(match[1] or CODED_BITS), int(match[3]), float(match[2] or 0))


def is_rate(value: float) -> bool:
    """Whether a number of bits can be a rate."""
    return LEAST_RATE <= value <= CODED_BITS and value % RATE_STEP == 0


@dataclass(frozen=True, slots=True)
class BitConfig:
    """The canonical bit assignment: one precision per layer, by name, in execution order."""

    layers: tuple[str, ...]
    precisions: tuple[Precision, ...]

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.precisions):
            raise InputError(f"{len(self.layers)} layers need as many precisions, got {len(self.precisions)}")

    def __getitem__(self, layer: str) -> Precision:
        return self.precisions[self.layers.index(layer)]

    @property
    def wbits(self) -> tuple[float, ...]:
        """Bits that weights are stored with, per layer: widths, or rates."""
        return tuple(precision.stored for precision in self.precisions)

    @classmethod
    def uniform(cls, layers: Iterable[str], precision: Precision) -> BitConfig:
        """The same precision everywhere."""
        names = tuple(layers)
        return cls(names, (precision,) * len(names))

    def to_json(self) -> dict[str, str]:
        """`{"features.0.0": "W8A32", …}`."""
        return {name: str(precision) for name, precision in zip(self.layers, self.precisions, strict=True)}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> BitConfig:
        """The inverse of `to_json`. Raises InputError where a value is no precision."""
        return cls(tuple(data), tuple(Precision.parse(text) for text in data.values()))

    def dumps(self) -> str:
        """The canonical JSON text of this assignment."""
        return json.dumps(self.to_json(), indent=1)
