"""Bit-widths: of one layer, and of a whole network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hwmodel.errors import InputError

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)
FLOAT_BITS = 32
HALVED_BITS = 4  # up to as many, zero-points of weights count in halves: at 8 levels that takes 8 % off the error


@dataclass(frozen=True, slots=True, order=True)
class Precision:
    """Bits of a layer's weights and of its input activations; 32 means float."""

    w: int
    a: int = FLOAT_BITS

    def __post_init__(self) -> None:
        for what, bits in (("weight", self.w), ("activation", self.a)):
            if bits not in (*WEIGHT_BITS, FLOAT_BITS):
                raise InputError(f"{what} bits must be one of 2-8 (or 32 for float), got {bits}")

    def __str__(self) -> str:
        return f"W{self.w}A{self.a}"

    @property
    def short(self) -> str:
        """`4`, or `4/8` where activations are quantized."""
        return f"{self.w}" if self.a == FLOAT_BITS else f"{self.w}/{self.a}"

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Reads `W4A8`. Raises InputError for anything else."""
        match = re.fullmatch(r"[Ww](\d+)[Aa](\d+)", text.strip())
        if not match:
            raise InputError(f"a precision looks like W4A8, got {text!r}")
        return cls(int(match[1]), int(match[2]))


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
    def wbits(self) -> tuple[int, ...]:
        """Weight bits per layer."""
        return tuple(precision.w for precision in self.precisions)

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
