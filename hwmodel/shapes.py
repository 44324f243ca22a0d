"""The layers of a table as arrays of integers, one entry per layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.layer import LayerSpec

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shapes:
    """Per layer (L,): channels of one group, taps of the kernel, heights and widths, groups and uses."""

    in_channels: Ints
    out_channels: Ints
    groups: Ints
    uses: Ints
    taps: Ints
    stride: Ints
    reach: Ints
    in_height: Ints
    in_width: Ints
    out_height: Ints
    out_width: Ints
    depthwise: NDArray[np.bool_]

    @classmethod
    def of(cls, layers: Iterable[LayerSpec]) -> Shapes:
        """`stride` and `reach` (rows that the dilated kernel spans) are vertical: maps are cut into rows."""
        rows = [
            (
                layer.in_channels // layer.groups,
                layer.out_channels // layer.groups,
                layer.groups,
                layer.uses,
                layer.kernel[0] * layer.kernel[1],
                layer.stride[0],
                (layer.kernel[0] - 1) * layer.dilation[0] + 1,
                *layer.in_size,
                *layer.out_size,
                layer.depthwise,
            )
            for layer in layers
        ]
        c = np.array(rows, np.int64).reshape(-1, 12).T
        return cls(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9], c[10], c[11].astype(bool))

    @property
    def macs(self) -> Ints:
        """Multiply-accumulates of one image and one use."""
        return self.groups * self.out_channels * self.in_channels * self.taps * self.out_height * self.out_width
