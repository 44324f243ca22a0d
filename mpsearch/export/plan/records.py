"""The integer plan of a low-bit network, which every exporter reads.

A tensor with a grid is `scale · (q − zero)`, q an int8 between `low` and `high`. An operation that has an integer form,
and whose tensors all have grids, is integer arithmetic; any other reads and writes real numbers, which are rounded to
the grid of its result where that has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recon.quantizers.weights import QuantizedWeight

LOWEST, HIGHEST = -128, 127

LayerKind = Literal["conv", "transposed", "linear", "embedding"]
Kind = Literal[
    LayerKind, "add", "mul", "concat", "mean", "maxpool", "avgpool", "table", "rescale", "reshape", "permute", "slice",
    "nearest", "float",
]  # fmt: skip
LAYERS: frozenset[Kind] = frozenset({"conv", "transposed", "linear", "embedding"})
VIEWS: frozenset[Kind] = frozenset({"reshape", "permute", "slice", "nearest"})  # move values, and change none
SAME_GRID: frozenset[Kind] = VIEWS | {"maxpool"}  # integer form: the result on the grid of what is read


@dataclass(frozen=True, slots=True)
class Grid:
    """`scale · (q − zero)` for int8 q; its writer clamps q to `low` and `high`: ReLU, fewer `bits`."""

    scale: float
    zero: int
    low: int = LOWEST
    high: int = HIGHEST
    bits: int = 8

    @property
    def whole(self) -> bool:
        """No code is cut off beyond what int8 does."""
        return (self.low, self.high) == (LOWEST, HIGHEST)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor by name: `shape` as noted in the graph, the sizes that grow with the samples negative. `grid` is None
    where it holds real numbers; where `cap` is a number, what wrote it went through ReLU that cuts off there."""

    name: str
    shape: tuple[int, ...]
    grid: Grid | None = None
    cap: float | None = None
    floating: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A layer's weight: as it is `stored`, which a float network's is not, and for integer arithmetic.

    `values` are the real weights (O, I / G, *kernel). What integer formats hold is `kept`: what is stored, or what is
    not `exact`, where that has no int8 codes with zero-point 0. `codes` are these (O, I / G, *kernel), with a float32
    `scale` (O,). `bias` (O,) is float32; `steps` (O,) is the
    bias as int32, counted in input scale times `scale`, None where the layer reads real numbers.
    """

    stored: QuantizedWeight | None
    kept: QuantizedWeight | None
    values: NDArray[np.float32]
    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    exact: bool
    bias: NDArray[np.float32]
    steps: NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor or constant of the plan, where it is an argument."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """An operation of `kind` that reads tensors and writes one. `settings` by kind:

    conv: stride, pads ((before, behind) by dimension), dilation, groups. transposed: those, and output_padding.
    mean: axes, keepdim. maxpool, avgpool: kernel, stride, pads, dilation, ceil. concat: axis. table: function.
    permute: order. slice: axis, start, stop, step. nearest: factors. float: operation, args, kwargs, where a `Ref`
    stands for each tensor.
    """

    kind: Kind
    name: str
    inputs: tuple[str, ...]
    output: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    weight: Weight | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A network as a list of operations in order. `inputs` and `outputs` name tensors; `names` are the paths of the
    outputs; `constants` are what float operations read beside tensors. `notes` say what is not exactly as it is stored.
    """

    ops: tuple[Op, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    names: tuple[str, ...]
    constants: Mapping[str, NDArray[Any]]
    notes: tuple[str, ...]

    def is_integer(self, op: Op) -> bool:
        """Whether the operation is integer arithmetic."""
        if op.kind in ("float", "embedding"):
            return False
        return all(self.tensors[name].grid is not None for name in (*op.inputs, op.output))

    def readers(self) -> dict[str, list[Op]]:
        """The operations that read each tensor."""
        found: dict[str, list[Op]] = {name: [] for name in self.tensors}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                found[name].append(op)
        return found

    def floats(self) -> tuple[Op, ...]:
        """The operations that stay float."""
        return tuple(op for op in self.ops if not self.is_integer(op))
