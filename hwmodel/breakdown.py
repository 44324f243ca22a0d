"""What a device model answers: seconds and joules per layer and precision, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import MpsearchError
from hwmodel.precision import Precision

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer at one precision, per image: `compute_s + memory_s + overhead_s == latency_s`."""

    layer: str
    precision: Precision
    compute_s: float
    memory_s: float
    overhead_s: float
    latency_s: float
    energy_j: float | None
    binds: str


@dataclass(frozen=True, slots=True)
class DeviceCosts:
    """Costs of L layers at C precisions on one device, per image; arrays (L, C).

    `compute_s` is the time the arithmetic takes, `memory_s` the time that waiting for memory adds to it (transfers
    hidden behind arithmetic do not count) and `overhead_s` what starting costs; they add up to `latency_s`, or this
    raises. `binds` names what limits the layer: compute, memory or overhead; of a lookup table, `measured` or
    `interpolated`. `energy_j` is None where the device file gives no energy. `memory_bytes` is main memory traffic.
    """

    layers: tuple[str, ...]
    precisions: tuple[Precision, ...]
    latency_s: Floats
    compute_s: Floats
    memory_s: Floats
    overhead_s: Floats
    energy_j: Floats | None
    memory_bytes: Floats
    binds: NDArray[np.str_]

    def __post_init__(self) -> None:
        shape = (len(self.layers), len(self.precisions))
        for name in ("latency_s", "compute_s", "memory_s", "overhead_s", "energy_j", "memory_bytes", "binds"):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise MpsearchError(f"device costs: {name} must have shape {shape}, got {array.shape}")
        parts = self.compute_s + self.memory_s + self.overhead_s
        wrong = ~np.isclose(parts, self.latency_s, rtol=1e-9, atol=0)
        if wrong.any() or min(self.compute_s.min(), self.memory_s.min(), self.overhead_s.min(), 0) < 0:
            at = np.argwhere(wrong)
            name = self.layers[at[0][0]] if len(at) else "a layer"
            raise MpsearchError(f"device costs: compute, memory and overhead of {name} do not add up to its latency")

    def at(self, precisions: Sequence[Precision]) -> DeviceCosts:
        """The costs at some of the precisions."""
        column = [self.precisions.index(precision) for precision in precisions]

        def some(array: Floats) -> Floats:
            return array[:, column]

        return DeviceCosts(
            self.layers,
            tuple(precisions),
            some(self.latency_s),
            some(self.compute_s),
            some(self.memory_s),
            some(self.overhead_s),
            None if self.energy_j is None else some(self.energy_j),
            some(self.memory_bytes),
            self.binds[:, column],
        )

    def records(self) -> Iterator[LayerCost]:
        """The L·C costs one by one, layer by layer."""
        for i, layer in enumerate(self.layers):
            for j, precision in enumerate(self.precisions):
                yield LayerCost(
                    layer,
                    precision,
                    float(self.compute_s[i, j]),
                    float(self.memory_s[i, j]),
                    float(self.overhead_s[i, j]),
                    float(self.latency_s[i, j]),
                    None if self.energy_j is None else float(self.energy_j[i, j]),
                    str(self.binds[i, j]),
                )
