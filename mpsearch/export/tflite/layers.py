"""Convolutions and linear maps in TFLite."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError
from mpsearch.export.onnx.forms import packed_low_first
from mpsearch.export.plan.records import Op
from mpsearch.export.tflite.writer import Writer

INT4_LOW, INT4_HIGH = -8, 7
CONVOLUTION, CONVOLUTION_INT4, LINEAR = 3, 7, 5  # versions of the operators


def write_layer(writer: Writer, op: Op, target: int, activation: int) -> None:
    """Adds a layer that writes `target` with a fused `activation`."""
    weight, grid = op.weight, writer.grid(op.inputs[0])
    assert weight is not None
    assert weight.steps is not None
    steps = (np.float32(grid.scale) * weight.scale).astype(np.float32)
    bias = writer.model.weights(f"{op.name}.bias", weight.steps.shape, "INT32", weight.steps.tobytes(), steps, 0)
    source = writer.result(op.inputs[0])
    if op.kind == "linear":
        # Of int4 by channel, TFLite Micro takes convolutions only.
        codes = writer.model.weights(
            f"{op.name}.weight", weight.codes.shape, "INT8", weight.codes.tobytes(), weight.scale, 0
        )
        keep = len(writer.shape(op.output)) > 2
        values = {"fusedActivationFunction": activation, "keepNumDims": keep}
        writer.model.operator(
            "FULLY_CONNECTED", LINEAR, [source, codes, bias], target, "FullyConnectedOptions", **values
        )
        return
    if weight.codes.ndim != 4:
        raise InputError(f"--format tflite has convolutions of two dimensions, {op.name} has {weight.codes.ndim - 2}")
    _convolution(writer, op, source, bias, target, activation)


def _convolution(writer: Writer, op: Op, source: int, bias: int, target: int, activation: int) -> None:
    weight, settings, schema = op.weight, op.settings, writer.model.schema
    assert weight is not None
    ins = writer.plan.tensors[op.inputs[0]].shape[1]
    depthwise = settings["groups"] == ins > 1
    if depthwise:  # (1, kernel, O): the outputs of an input channel one after another, as ours are
        laid = weight.codes.transpose(1, 2, 3, 0)
        codes, narrow = _weights(writer, op, laid, weight.scale, 3)
    else:
        codes, narrow = _weights(writer, op, weight.codes.transpose(0, 2, 3, 1), weight.scale, 0)
    padding = schema.Padding.VALID
    if any(map(any, settings["pads"])):
        if _is_same(writer, op):
            padding = schema.Padding.SAME
        else:
            source = padded(writer, op, source, "PAD")
    values = {
        "padding": padding,
        "strideH": settings["stride"][0],
        "strideW": settings["stride"][1],
        "dilationHFactor": settings["dilation"][0],
        "dilationWFactor": settings["dilation"][1],
        "fusedActivationFunction": activation,
    }
    if depthwise:
        values["depthMultiplier"] = len(weight.codes) // ins
        kind, options = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
    else:
        kind, options = "CONV_2D", "Conv2DOptions"
    version = CONVOLUTION_INT4 if narrow else CONVOLUTION
    writer.model.operator(kind, version, [source, codes, bias], target, options, **values)


def padded(writer: Writer, op: Op, source: int, kind: str) -> int:
    """The map behind the operation's own padding: of zero (PAD), or of the lowest code (PADV2)."""
    (top, bottom), (left, right) = op.settings["pads"]
    n, h, w, c = writer.shape(op.inputs[0])
    grid = writer.grid(op.inputs[0])
    result = writer.inner(f"{op.output}_padded", (n, h + top + bottom, w + left + right, c), grid)
    pads = writer.model.constant(np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32))
    if kind == "PAD":
        return writer.model.operator("PAD", 2, [source, pads], result, "PadOptions")
    lowest = writer.model.constant(np.array([-128], np.int8), "INT8", grid)
    return writer.model.operator("PADV2", 2, [source, pads, lowest], result, "PadV2Options")


def _is_same(writer: Writer, op: Op) -> bool:
    """The padding is what TFLite calls SAME, for which the odd one goes behind."""
    assert op.weight is not None
    sizes, outs = writer.shape(op.inputs[0])[1:3], writer.shape(op.output)[1:3]
    for axis, (before, behind) in enumerate(op.settings["pads"]):
        reach = op.settings["dilation"][axis] * (op.weight.codes.shape[2 + axis] - 1) + 1
        total = max((outs[axis] - 1) * op.settings["stride"][axis] + reach - sizes[axis], 0)
        expected = -(-sizes[axis] // op.settings["stride"][axis])
        if (before, behind) != (total // 2, total - total // 2) or outs[axis] != expected:
            return False
    return True


def _weights(
    writer: Writer, op: Op, codes: NDArray[np.int8], scale: NDArray[np.float32], axis: int
) -> tuple[int, bool]:
    """The weight tensor, and whether it is of int4."""
    codes = np.ascontiguousarray(codes)
    assert op.weight is not None
    few = op.weight.kept is not None and op.weight.kept.grid.bits <= 4
    narrow = bool(writer.int4 and few and codes.min() >= INT4_LOW and codes.max() <= INT4_HIGH)
    data = packed_low_first((codes & 15).astype(np.uint8), 4) if narrow else codes.tobytes()
    kind = "INT4" if narrow else "INT8"
    return writer.model.weights(f"{op.name}.weight", codes.shape, kind, data, scale, axis), narrow
