"""Operations of a plan as TFLite operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwmodel.errors import InputError
from mpsearch.export.plan.golden import function_table
from mpsearch.export.plan.records import HIGHEST, LAYERS, LOWEST, Grid, Op
from mpsearch.export.tflite.layers import padded, write_layer
from mpsearch.export.tflite.writer import MAP, TO_FIRST, TO_LAST, Writer, laid_out

SIX = 6.0


def write_operation(writer: Writer, op: Op) -> None:
    """Adds an operation. Raises InputError where TFLite has no integer operator for it."""
    fuses = op.kind in ("conv", "linear", "add", "mul")
    if not writer.plan.is_integer(op) or not (fuses or op.kind in _WRITERS):
        kind = op.settings.get("target", op.kind) if op.kind == "float" else op.kind
        raise InputError(
            f"--format tflite needs integers, but {op.name} ({kind}) has no integer operator; export --format onnx"
        )
    if fuses:
        target, activation = _fused(writer, op)
        if op.kind in LAYERS:
            write_layer(writer, op, target, activation)
        else:
            _sum_or_product(writer, op, target, activation)
    else:
        target, _ = _fused(writer, op, fuses=False)
        _WRITERS[op.kind](writer, op, target)
    if target != writer.result(op.output):
        write_clamp(writer, op.output, target)


def _fused(writer: Writer, op: Op, fuses: bool = True) -> tuple[int, int]:
    """The tensor to write, and the activation that cuts off what its grid does: another tensor than the plan's where
    no activation does, which `write_clamp` turns into that."""
    kinds, grid = writer.model.schema.ActivationFunctionType, writer.grid(op.output)
    if grid.whole or op.kind in ("reshape", "permute", "slice", "nearest", "table"):
        return writer.result(op.output), kinds.NONE
    if fuses and grid.low == max(LOWEST, grid.zero):
        six = int(np.rint(np.float32(SIX) / np.float32(grid.scale))) + grid.zero
        if grid.high == HIGHEST:
            return writer.result(op.output), kinds.RELU
        if grid.high == min(HIGHEST, six):
            return writer.result(op.output), kinds.RELU6
    return writer.inner(f"{op.output}_all", writer.shape(op.output), grid), kinds.NONE


def write_clamp(writer: Writer, name: str, source: int) -> None:
    """Cuts off codes by MAXIMUM and MINIMUM on their way to the plan's tensor."""
    grid, shape = writer.grid(name), writer.shape(name)
    ends = [("MAXIMUM", grid.low, LOWEST), ("MINIMUM", grid.high, HIGHEST)]
    needed = [(kind, end) for kind, end, whole in ends if end != whole]
    for k, (kind, end) in enumerate(needed):
        last = k == len(needed) - 1
        target = writer.result(name) if last else writer.inner(f"{name}_cut", shape, grid)
        limit = writer.model.constant(np.array([end], np.int8), "INT8", grid)
        source = writer.model.operator(kind, 2, [source, limit], target, "MaximumMinimumOptions")


def _sum_or_product(writer: Writer, op: Op, target: int, activation: int) -> None:
    kind, options = ("ADD", "AddOptions") if op.kind == "add" else ("MUL", "MulOptions")
    inputs = [writer.result(name) for name in op.inputs]
    writer.model.operator(kind, 2, inputs, target, options, fusedActivationFunction=activation)


def _concat(writer: Writer, op: Op, target: int) -> None:
    rank = len(writer.shape(op.output))
    axis = TO_LAST.index(op.settings["axis"]) if rank == MAP else op.settings["axis"]
    grid, parts = _plain(writer.grid(op.output)), []
    for name in op.inputs:
        source = writer.result(name)
        given = writer.grid(name)
        if (given.scale, given.zero) != (grid.scale, grid.zero):
            moved = writer.inner(f"{op.output}_{name}", writer.shape(name), grid)
            source = writer.model.operator("QUANTIZE", 2, [source], moved, "QuantizeOptions")
        parts.append(source)
    writer.model.operator("CONCATENATION", 2, parts, target, "ConcatenationOptions", axis=axis)


def _plain(grid: Grid) -> Grid:
    return Grid(grid.scale, grid.zero)


def _rescale(writer: Writer, op: Op, target: int) -> None:
    writer.model.operator("QUANTIZE", 2, [writer.result(op.inputs[0])], target, "QuantizeOptions")


def _mean(writer: Writer, op: Op, target: int) -> None:
    rank = len(writer.shape(op.inputs[0]))
    axes = [TO_LAST.index(axis) if rank == MAP else axis for axis in op.settings["axes"]]
    if rank == MAP and not op.settings["keepdim"] and len(axes) < 2:
        raise InputError(f"--format tflite: {op.name} is a mean over one axis of a map; keep that axis")
    at = writer.model.constant(np.array(sorted(axes), np.int32))
    inputs = [writer.result(op.inputs[0]), at]
    writer.model.operator("MEAN", 2, inputs, target, "ReducerOptions", keepDims=bool(op.settings["keepdim"]))


def _pool(writer: Writer, op: Op, target: int) -> None:
    settings, source = op.settings, writer.result(op.inputs[0])
    if len(settings["kernel"]) != 2 or any(step != 1 for step in settings["dilation"]):
        raise InputError(f"--format tflite pools maps of two dimensions without gaps; {op.name} is another kind")
    if any(map(any, settings["pads"])):
        source = padded(writer, op, source, "PADV2")
    values = {"padding": writer.model.schema.Padding.VALID}
    values |= {"strideH": settings["stride"][0], "strideW": settings["stride"][1]}
    values |= {"filterHeight": settings["kernel"][0], "filterWidth": settings["kernel"][1]}
    writer.model.operator("MAX_POOL_2D", 2, [source], target, "Pool2DOptions", **values)


def _average_pool(writer: Writer, op: Op, target: int) -> None:
    """A depthwise convolution with weights of 1 / count: TFLite's average has one grid for what it reads and writes."""
    if len(op.settings["kernel"]) != 2:
        raise InputError(f"--format tflite pools maps of two dimensions; {op.name} is another kind")
    channels, kernel = writer.shape(op.inputs[0])[-1], op.settings["kernel"]
    share = np.full(channels, 1 / (kernel[0] * kernel[1]), np.float32)
    shape = (1, *kernel, channels)
    ones = writer.model.weights(f"{op.output}.ones", shape, "INT8", np.ones(shape, np.int8).tobytes(), share, 3)
    steps = np.float32(writer.grid(op.inputs[0]).scale) * share
    nothing = np.zeros(channels, np.int32).tobytes()
    bias = writer.model.weights(f"{op.output}.nothing", (channels,), "INT32", nothing, steps, 0)
    values = {"padding": writer.model.schema.Padding.VALID, "depthMultiplier": 1}
    values |= {"strideH": op.settings["stride"][0], "strideW": op.settings["stride"][1]}
    values |= {"dilationHFactor": 1, "dilationWFactor": 1}
    inputs = [writer.result(op.inputs[0]), ones, bias]
    writer.model.operator("DEPTHWISE_CONV_2D", 3, inputs, target, "DepthwiseConv2DOptions", **values)


def _table(writer: Writer, op: Op, target: int) -> None:
    """GATHER of the 256 values, at the code plus 128: the same in every runtime, which TFLite's own functions are
    not."""
    model, shape, grid = writer.model, writer.shape(op.inputs[0]), writer.grid(op.output)
    table = model.constant(function_table(op, writer.plan.tensors[op.inputs[0]], grid), "INT8", _plain(grid))
    types = model.schema.TensorType
    wide = model.tensor(f"{op.output}_code", shape, "INT32")
    kinds = {"inDataType": types.INT8, "outDataType": types.INT32}
    model.operator("CAST", 1, [writer.result(op.inputs[0])], wide, "CastOptions", **kinds)
    index = model.tensor(f"{op.output}_index", shape, "INT32")
    model.operator("ADD", 1, [wide, model.constant(np.array([-LOWEST], np.int32))], index, "AddOptions")
    model.operator("GATHER", 2, [table, index], target, "GatherOptions", axis=0, batchDims=0)


def _reshape(writer: Writer, op: Op, target: int) -> None:
    """Values keep their order with channels first; maps are turned to that and back where they have positions."""
    grid = writer.grid(op.output)
    before, after = (tuple(abs(size) for size in writer.plan.tensors[name].shape) for name in (op.inputs[0], op.output))
    source = writer.result(op.inputs[0])
    if len(before) == MAP and before[2] * before[3] > 1 and before[1] > 1:
        turned = writer.inner(f"{op.output}_first", before, grid)
        source = _transpose(writer, source, TO_FIRST, turned)
    if len(after) == MAP and after[2] * after[3] > 1 and after[1] > 1:
        plain = _reshaped(writer, source, after, writer.inner(f"{op.output}_plain", after, grid))
        _transpose(writer, plain, TO_LAST, target)
        return
    _reshaped(writer, source, laid_out(after), target)


def _reshaped(writer: Writer, source: int, shape: tuple[int, ...], target: int) -> int:
    sizes = writer.model.constant(np.array(shape, np.int32))
    return writer.model.operator("RESHAPE", 1, [source, sizes], target, "ReshapeOptions", newShape=list(shape))


def _transpose(writer: Writer, source: int, order: tuple[int, ...], target: int) -> int:
    at = writer.model.constant(np.array(order, np.int32))
    return writer.model.operator("TRANSPOSE", 2, [source, at], target, "TransposeOptions")


def _permute(writer: Writer, op: Op, target: int) -> None:
    order = op.settings["order"]
    if len(order) == MAP:  # from channels last to channels last
        order = tuple(TO_LAST.index(order[axis]) for axis in TO_LAST)
    _transpose(writer, writer.result(op.inputs[0]), tuple(order), target)


def _slice(writer: Writer, op: Op, target: int) -> None:
    shape, settings = writer.shape(op.inputs[0]), op.settings
    axis = TO_LAST.index(settings["axis"]) if len(shape) == MAP else settings["axis"]
    begin, end, step = [0] * len(shape), list(shape), [1] * len(shape)
    begin[axis], end[axis], step[axis] = settings["start"], settings["stop"], settings["step"]
    numbers = [writer.model.constant(np.array(values, np.int32)) for values in (begin, end, step)]
    writer.model.operator("STRIDED_SLICE", 2, [writer.result(op.inputs[0]), *numbers], target, "StridedSliceOptions")


def _nearest(writer: Writer, op: Op, target: int) -> None:
    _, height, width, _ = writer.shape(op.output)
    size = writer.model.constant(np.array([height, width], np.int32))
    inputs = [writer.result(op.inputs[0]), size]
    writer.model.operator("RESIZE_NEAREST_NEIGHBOR", 2, inputs, target, "ResizeNearestNeighborOptions")


_WRITERS: dict[str, Callable[[Writer, Op, int], None]] = {
    "concat": _concat,
    "rescale": _rescale,
    "mean": _mean,
    "maxpool": _pool,
    "avgpool": _average_pool,
    "table": _table,
    "reshape": _reshape,
    "permute": _permute,
    "slice": _slice,
    "nearest": _nearest,
}
