"""How the weights of layers are stored in an ONNX file."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpsearch.export.onnx.graph import Graph
from mpsearch.export.plan.records import Op, Weight
from mpsearch.export.plan.weights import is_halved
from recon.quantizers.weights import QuantizedWeight

UINT2_BITS, UINT4_BITS = 2, 4


class Form(Protocol):
    """Writes what a layer holds; each function gives the graph's names of it."""

    def dequantized(self, graph: Graph, op: Op, input_scale: float) -> tuple[str, str]:
        """int8 codes (O, I / G, *kernel) with zero-point 0 and int32 biases (O,), counted in steps of `input_scale`
        times that of the codes, both behind DequantizeLinear."""

    def real_weight(self, graph: Graph, op: Op) -> str:
        """Real weights (O, I / G, *kernel)."""

    def real_bias(self, graph: Graph, op: Op) -> str:
        """The real bias (O,)."""


class CastForm:
    """Codes of up to 4 bits as UINT2 or UINT4, and others as int8.

    Low-bit codes become int8 with zero-point 0 by Cast and Sub, which a runtime folds when it loads the file;
    DequantizeLinear directly on them would leave the layer in float arithmetic.
    """

    def dequantized(self, graph: Graph, op: Op, input_scale: float) -> tuple[str, str]:
        weight = weight_of(op)
        assert weight.steps is not None
        scale = graph.constant(weight.scale, f"{op.name}.scale")
        parts = [self._codes(graph, op, weight), scale]
        if op.kind == "linear":  # onnxruntime's QGemm wants the zero-point that is zero where there is none
            parts.append(graph.constant(np.zeros(len(weight.bias), np.int8), "no_zero"))
        w = graph.node("DequantizeLinear", parts, f"{op.name}.weight", axis=0)
        steps = (np.float32(input_scale) * weight.scale).astype(np.float32)
        bias = [graph.constant(weight.steps, f"{op.name}.bias"), graph.constant(steps, f"{op.name}.step")]
        return w, graph.node("DequantizeLinear", bias, f"{op.name}.bias_real", axis=0)

    def _codes(self, graph: Graph, op: Op, weight: Weight) -> str:
        from onnx import TensorProto

        if weight.kept is None or weight.kept.grid.bits > UINT4_BITS:
            return graph.constant(weight.codes, f"{op.name}.codes")
        centred = self._centred(graph, op, weight.kept)
        if is_halved(weight.kept):
            centred = graph.node("Mul", [centred, graph.constant(np.float32(2), "two")], f"{op.name}.doubled")
        return graph.node("Cast", [centred], f"{op.name}.int8", to=TensorProto.INT8)

    def real_weight(self, graph: Graph, op: Op) -> str:
        weight = weight_of(op)
        if weight.stored is None:
            return graph.constant(weight.values, f"{op.name}.weight")
        scale = weight.stored.grid.scale.cpu().numpy().astype(np.float32)
        steps = graph.constant(column(scale, weight.values.ndim), f"{op.name}.scale")
        return graph.node("Mul", [self._centred(graph, op, weight.stored), steps], f"{op.name}.weight")

    def real_bias(self, graph: Graph, op: Op) -> str:
        return graph.constant(weight_of(op).bias, f"{op.name}.bias")

    def _centred(self, graph: Graph, op: Op, weight: QuantizedWeight) -> str:
        """Codes less their zero-point as real numbers."""
        from onnx import TensorProto

        bits, codes = weight.grid.bits, weight.codes.cpu().numpy()
        if bits > UINT4_BITS:
            source = graph.constant(codes, f"{op.name}.codes", np.uint8)
        else:
            width = UINT2_BITS if bits <= UINT2_BITS else UINT4_BITS
            kind = TensorProto.UINT2 if width == UINT2_BITS else TensorProto.UINT4
            source = graph.packed(packed_low_first(codes, width), kind, codes.shape, f"{op.name}.codes")
        zero = weight.grid.zero_point.cpu().numpy().astype(np.float32)
        numbers = graph.node("Cast", [source], f"{op.name}.numbers", to=TensorProto.FLOAT)
        return graph.node(
            "Sub", [numbers, graph.constant(column(zero, codes.ndim), f"{op.name}.zero")], f"{op.name}.centred"
        )


def weight_of(op: Op) -> Weight:
    """The weight of a layer."""
    assert op.weight is not None
    return op.weight


def column(values: NDArray[Any], dimensions: int) -> NDArray[Any]:
    """Values by output channel, to be broadcast over a weight."""
    return values.reshape(-1, *(1,) * (dimensions - 1))


def packed_low_first(codes: NDArray[np.uint8], width: int) -> bytes:
    """Codes in fields of 2 or 4 bits, the first one in the lowest bits of a byte, as ONNX stores them."""
    count = 8 // width
    flat = np.pad(codes.ravel(), (0, -codes.size % count)).reshape(-1, count)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(flat << np.arange(0, 8, width, dtype=np.uint8), axis=1)
    return packed.astype(np.uint8).tobytes()
