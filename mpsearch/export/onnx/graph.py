"""Collecting an ONNX graph: nodes, initialisers, names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpsearch.export.plan.records import LOWEST, Grid, Plan

GATE = Grid(1 / 256, LOWEST)  # of onnxruntime's integer sigmoid
_SIX = Grid(6 / 255, LOWEST)


class Graph:
    """Nodes in order and initialisers of an ONNX graph that is being written.

    `names` are the graph's names of the plan's tensors, as readers find them: real numbers, behind DequantizeLinear
    where there is a grid. `factors` are of values so many times as large as they should be, which rounding to a grid
    makes good. `integers` says that what can be integer arithmetic is to be so.
    """

    integers = True

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        self.factors: dict[str, float] = {}
        self._shared: dict[bytes, str] = {}
        self._taken: set[str] = set()
        self._constants: dict[str, str] = {}

    def node(self, kind: str, inputs: Sequence[str], name: str, *, domain: str = "", **attributes: Any) -> str:
        """Adds a node; its output, called `name` or nearly so."""
        return self.call(kind, inputs, [name], domain=domain, **attributes)[0]

    def call(
        self, kind: str, inputs: Sequence[str], names: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Adds a node of several outputs; these, called `names` or nearly so."""
        from onnx import helper

        made = [self._free(name) for name in names]
        self.nodes.append(helper.make_node(kind, list(inputs), made, domain=domain or None, **attributes))
        return made

    def constant(self, values: ArrayLike, name: str, dtype: Any = None) -> str:
        """The initialiser that holds the values; equal ones are stored once."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(np.asarray(values, dtype))
        key = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
        if key not in self._shared:
            free = self._free(name)
            self._shared[key] = free
            self.initializers[free] = numpy_helper.from_array(array.reshape(np.shape(values)), free)
        return self._shared[key]

    def packed(self, data: bytes, kind: int, shape: Sequence[int], name: str) -> str:
        """The initialiser that holds `data` as ONNX's data type `kind`."""
        from onnx import helper

        free = self._free(name)
        self.initializers[free] = helper.make_tensor(free, kind, list(shape), data, raw=True)
        return free

    def plan_constant(self, name: str) -> str:
        """A constant of the plan's float operations."""
        if name not in self._constants:
            self._constants[name] = self.constant(self.plan.constants[name], name)
        return self._constants[name]

    def scale_and_zero(self, grid: Grid, name: str) -> tuple[str, str]:
        """Initialisers of a grid for unsigned codes."""
        scale = self.constant(grid.scale, f"{name}.scale", np.float32)
        return scale, self.constant(grid.zero - LOWEST, f"{name}.zero", np.uint8)

    def on_grid(self, x: str, grid: Grid, name: str) -> str:
        """Real numbers `x` rounded to a grid: QuantizeLinear, a Clip of the codes where some are cut off, and
        DequantizeLinear. A Clip of codes keeps the kernel before it an integer one, as ReLU6 would not."""
        pair = self.scale_and_zero(grid, name)
        scale = pair[0]
        if x in self.factors:
            scale = self.constant(grid.scale * self.factors[x], f"{name}.scale", np.float32)
        codes = self.node("QuantizeLinear", [x, scale, pair[1]], f"{name}.q")
        if not grid.whole:
            ends = [self.constant(end - LOWEST, f"{name}.end", np.uint8) for end in (grid.low, grid.high)]
            codes = self.node("Clip", [codes, *ends], f"{name}.clipped")
        return self.node("DequantizeLinear", [codes, *pair], f"{name}.dq")

    def silu(self, x: str, name: str) -> str:
        """SiLU of a tensor with a grid: an integer sigmoid, which is a table, and a product."""
        gate = self.node("Sigmoid", [x], f"{name}.sigmoid")
        return self.node("Mul", [x, self.on_grid(gate, GATE, f"{name}.gate")], name)

    def hardswish(self, x: str, name: str) -> str:
        """HardSwish, six times as large, of a tensor with a grid: x + 3, which its grid cuts off, and a product."""
        three = self.on_grid(self.constant(np.float32(3), "three"), _SIX, "three")
        gate = self.on_grid(self.node("Add", [x, three], f"{name}.moved"), _SIX, f"{name}.gate")
        product = self.node("Mul", [x, gate], name)
        self.factors[product] = 6.0
        return product

    def _free(self, name: str) -> str:
        free, k = name, 1
        while free in self._taken:
            free, k = f"{name}.{k}", k + 1
        self._taken.add(free)
        return free


def shape_of(sizes: Sequence[int]) -> NDArray[np.int64]:
    """A shape for Reshape: what grows with the samples is found from the rest."""
    return np.array([-1 if size < 0 else size for size in sizes], np.int64)
