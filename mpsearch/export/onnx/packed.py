"""Weights without gaps between their bits, as in the packed file: functions that the ONNX file itself defines unpack
them, and onnxruntime folds these when it loads the file."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpsearch.export.codes import pack
from mpsearch.export.onnx.forms import CastForm, column, weight_of
from mpsearch.export.onnx.graph import GATE, Graph
from mpsearch.export.plan.records import LOWEST, Grid, Op
from mpsearch.export.plan.weights import is_halved
from recon.quantizers.weights import QuantizedWeight

DOMAIN = "mp"  # every call of a function takes its bytes
BITS_A_BYTE = 8


class PackedForm:
    """Codes at their own width, scales and biases in half precision, as the packed file has them."""

    def __init__(self) -> None:
        self._cast = CastForm()

    def dequantized(self, graph: Graph, op: Op, input_scale: float) -> tuple[str, str]:
        kept = weight_of(op).kept
        assert kept is not None
        half = graph.constant(kept.grid.scale.cpu().numpy(), f"{op.name}.half_scale", np.float16)
        factor = graph.constant(np.float32(input_scale), f"{op.name}.input_scale")
        parts = [*self._parts(graph, op, kept), half, self._half_bias(graph, op), factor]
        kind = "Linear" if op.kind == "linear" else "Layer"
        w, b = graph.call(kind, parts, [f"{op.name}.weight", f"{op.name}.bias"], domain=DOMAIN)
        return w, b

    def real_weight(self, graph: Graph, op: Op) -> str:
        weight = weight_of(op)
        if weight.stored is None:
            return self._cast.real_weight(graph, op)
        scale = column(weight.stored.grid.scale.cpu().numpy(), weight.values.ndim)
        half = graph.constant(scale, f"{op.name}.half_scale", np.float16)
        return graph.node("Weight", [*self._parts(graph, op, weight.stored), half], f"{op.name}.weight", domain=DOMAIN)

    def real_bias(self, graph: Graph, op: Op) -> str:
        from onnx import TensorProto

        return graph.node("Cast", [self._half_bias(graph, op)], f"{op.name}.bias", to=TensorProto.FLOAT)

    def _half_bias(self, graph: Graph, op: Op) -> str:
        return graph.constant(weight_of(op).bias, f"{op.name}.half_bias", np.float16)

    def _factor(self, graph: Graph, weight: QuantizedWeight) -> str:
        """Two where zero-points count in halves: codes are doubled then, and scales are halved."""
        doubled = is_halved(weight)
        return graph.constant(np.float32(2 if doubled else 1), "two" if doubled else "one")

    def _parts(self, graph: Graph, op: Op, stored: QuantizedWeight) -> list[str]:
        """What Codes and Weight unpack."""
        bits, codes = stored.grid.bits, stored.codes.cpu().numpy()
        flat = np.pad(codes.ravel(), (0, -codes.size % BITS_A_BYTE))
        zero = stored.grid.zero_point.cpu().numpy() * (2 if is_halved(stored) else 1)
        return [
            graph.constant(pack(flat, bits).reshape(-1, 1), f"{op.name}.packed"),
            graph.constant((2.0 ** np.arange(bits)).reshape(bits, 1), f"powers{bits}", np.float32),
            graph.constant(np.array(codes.shape, np.int64), "shape"),
            graph.constant(np.array([codes.size], np.int64), "count"),
            self._factor(graph, stored),
            graph.constant(column(zero, codes.ndim), f"{op.name}.zero", np.uint8),
        ]


class PackedGraph(Graph):
    """A graph that calls a function for each rounding: what takes most bytes where layers are small."""

    def on_grid(self, x: str, grid: Grid, name: str) -> str:
        if not grid.whole or x in self.factors:
            return super().on_grid(x, grid, name)
        return self.node("Grid", [x, *self.scale_and_zero(grid, name)], f"{name}.dq", domain=DOMAIN)

    def silu(self, x: str, name: str) -> str:
        return self.node("SiLU", [x], name, domain=DOMAIN)


def functions(graph: Graph, opset: int) -> list[Any]:
    """The definitions of those functions that the graph calls."""
    from onnx import helper

    called = {node.op_type for node in graph.nodes if node.domain == DOMAIN}
    imports = [helper.make_opsetid("", opset)]
    return [
        helper.make_function(DOMAIN, name, inputs, outputs, nodes, imports)
        for name, inputs, outputs, nodes in _definitions()
        if name in called
    ]


def _definitions() -> list[tuple[str, list[str], list[str], list[Any]]]:
    """Name, inputs, outputs and nodes. Codes are found bit by bit, and these added up, weighted by `powers` of two."""
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, value: Any) -> Any:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return helper.make_node(kind, inputs, [output], **attributes)

    unpack = [
        constant("positions", np.arange(BITS_A_BYTE, dtype=np.uint8).reshape(1, -1)),
        constant("low", np.uint8(1)),
        constant("rest", np.array([-1], np.int64)),
        constant("start", np.array([0], np.int64)),
        node("BitShift", ["packed", "positions"], "shifted", direction="RIGHT"),
        node("BitwiseAnd", ["shifted", "low"], "bits"),
        node("Shape", ["powers"], "powers_shape"),
        node("Gather", ["powers_shape", "start"], "width"),
        node("Concat", ["rest", "width"], "rows", axis=0),
        node("Reshape", ["bits", "rows"], "planes"),
        node("Cast", ["planes"], "numbers", to=TensorProto.FLOAT),
        node("MatMul", ["numbers", "powers"], "all_codes"),
        node("Slice", ["all_codes", "start", "count"], "some_codes"),
        node("Reshape", ["some_codes", "shape"], "codes"),
        node("Mul", ["codes", "factor"], "scaled"),
        node("Cast", ["zero"], "zero_point", to=TensorProto.FLOAT),
        node("Sub", ["scaled", "zero_point"], "centred"),
    ]
    scale = [
        node("Cast", ["half_scale"], "single", to=TensorProto.FLOAT),
        node("Div", ["single", "factor"], "scale"),
    ]
    layer = [
        *unpack,
        *scale,
        node("Cast", ["centred"], "int8", to=TensorProto.INT8),
        node("Mul", ["input_scale", "scale"], "step"),
        node("Cast", ["half_bias"], "real_bias", to=TensorProto.FLOAT),
        node("Div", ["real_bias", "step"], "steps"),
        node("Round", ["steps"], "whole"),
        node("Cast", ["whole"], "int32", to=TensorProto.INT32),
        node("DequantizeLinear", ["int32", "step"], "bias", axis=0),
    ]
    no_zero = [node("Sub", ["scale", "scale"], "nothing"), node("Cast", ["nothing"], "no_zero", to=TensorProto.INT8)]
    rounded = [node("QuantizeLinear", ["x", "s", "z"], "codes"), node("DequantizeLinear", ["codes", "s", "z"], "y")]
    gate = [
        constant("s", np.float32(GATE.scale)),
        constant("z", np.uint8(GATE.zero - LOWEST)),
        node("Sigmoid", ["x"], "share"),
        node("QuantizeLinear", ["share", "s", "z"], "codes"),
        node("DequantizeLinear", ["codes", "s", "z"], "gate"),
        node("Mul", ["x", "gate"], "y"),
    ]
    parts = ["packed", "powers", "shape", "count", "factor", "zero", "half_scale"]
    held, results = [*parts, "half_bias", "input_scale"], ["weight", "bias"]
    plain = node("DequantizeLinear", ["int8", "scale"], "weight", axis=0)
    zeroed = node("DequantizeLinear", ["int8", "scale", "no_zero"], "weight", axis=0)
    return [
        ("Layer", held, results, [*layer, plain]),
        ("Linear", held, results, [*layer, *no_zero, zeroed]),  # onnxruntime's QGemm wants a zero-point
        ("Weight", parts, ["weight"], [*unpack, *scale, node("Mul", ["centred", "scale"], "weight")]),
        ("SiLU", ["x"], ["y"], gate),
        ("Grid", ["x", "s", "z"], ["y"], rounded),
    ]
