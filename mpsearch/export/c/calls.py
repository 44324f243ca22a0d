"""Operations of a plan as calls of the C kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError
from mpsearch.export.c.arena import bytes_of
from mpsearch.export.plan.arithmetic import mean_multiplier, multiplier, multipliers
from mpsearch.export.plan.golden import ADD_SHIFT, average_factor, function_table
from mpsearch.export.plan.records import Grid, Op, Plan, Tensor
from mpsearch.export.plan.weights import is_halved

WIDEST_MAP = 4  # dimensions: samples, channels, height, width


class Calls:
    """Constants and statements of a network's C code. `flash` counts bytes of constants, `row` the weights of the
    longest output channel, `widest` the width of the widest map that a layer writes."""

    def __init__(self, plan: Plan, places: dict[str, int]) -> None:
        self.plan, self.places = plan, places
        self.constants: list[str] = []
        self.statements: list[str] = []
        self.flash = self.row = 0
        self.widest = 1

    def add(self, op: Op, index: int) -> None:
        """Adds an operation. Raises InputError where the kernels have no such thing."""
        if not self.plan.is_integer(op) or op.kind not in _WRITERS:
            kind = op.settings.get("target", op.kind) if op.kind == "float" else op.kind
            raise InputError(
                f"--format c needs integers, but {op.name} ({kind}) has no integer kernel; export --format onnx"
            )
        _WRITERS[op.kind](self, op, f"l{index}")

    def tensor(self, name: str) -> Tensor:
        return self.plan.tensors[name]

    def at(self, name: str) -> str:
        """The C expression of a tensor's place."""
        return f"arena + {self.places[name]}"

    def array(self, kind: str, name: str, values: Sequence[int] | NDArray[np.generic]) -> None:
        """Adds a constant array."""
        flat = np.asarray(values).ravel()
        lines = [",".join(map(str, flat[start : start + 24].tolist())) for start in range(0, len(flat), 24)]
        self.constants.append(f"static const {kind} {name}[{len(flat)}] = {{\n" + ",\n".join(lines) + "};\n")
        self.flash += len(flat) * _BYTES[kind]


_BYTES = {"uint8_t": 1, "int8_t": 1, "int32_t": 4}


def grid_of(tensor: Tensor) -> Grid:
    """The grid of a tensor that has one."""
    assert tensor.grid is not None
    return tensor.grid


def _scale(tensor: Tensor) -> float:
    return float(np.float32(grid_of(tensor).scale))


def _factor(value: float) -> str:
    fixed, shift = multiplier(value)
    return f"(mps_factor){{{fixed}, {shift}}}"


def _ends(tensor: Tensor) -> str:
    return f"{grid_of(tensor).low}, {grid_of(tensor).high}"


def _map(tensor: Tensor) -> tuple[int, int, int]:
    """(channels, height, width) of one sample's map."""
    shape = tensor.shape[1:]
    if len(tensor.shape) > WIDEST_MAP or tensor.shape[0] != -1:
        raise InputError(f"--format c has maps of up to two dimensions, {tensor.name} has the shape {list(shape)}")
    return (shape[0], 1, shape[1]) if len(shape) == 2 else (shape[0], shape[1], shape[2])


def _pair(values: Sequence[int], fill: int) -> tuple[int, int]:
    return (fill, values[0]) if len(values) == 1 else (values[0], values[1])


def _layer(calls: Calls, op: Op, name: str) -> None:
    weight, source, target = op.weight, calls.tensor(op.inputs[0]), calls.tensor(op.output)
    assert weight is not None
    assert weight.steps is not None
    assert weight.kept is not None
    bits, doubled, codes = weight.kept.grid.bits, is_halved(weight.kept), weight.kept.codes.cpu().numpy()
    zero = (weight.kept.grid.zero_point.cpu().numpy() * (2 if doubled else 1)).astype(np.int64)
    rows = codes.reshape(len(codes), -1)
    planes = (rows[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1
    calls.array("uint8_t", f"{name}_w", np.packbits(planes.reshape(len(rows), -1), axis=1, bitorder="little"))
    factors = _scale(source) * weight.scale.astype(np.float64) / _scale(target)
    fixed, shift = multipliers(factors)
    for kind, suffix, values in (
        ("uint8_t", "z", zero),
        ("int32_t", "b", weight.steps),
        ("int32_t", "m", fixed),
        ("int8_t", "s", shift),
    ):
        calls.array(kind, f"{name}_{suffix}", values)
    calls.row = max(calls.row, rows.shape[1])
    outs, settings, lines = len(codes), op.settings, 1
    if op.kind == "linear":
        numbers = [rows.shape[1], outs, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]
        lines = bytes_of(calls.plan, op.inputs[0]) // rows.shape[1]
    else:
        (ins, h, w), (_, oh, ow) = _map(source), _map(target)
        before, calls.widest = [pad for pad, _ in settings["pads"]], max(calls.widest, ow)
        pairs = [
            _pair(codes.shape[2:], 1),
            _pair(settings["stride"], 1),
            _pair(before, 0),
            _pair(settings["dilation"], 1),
        ]
        numbers = [ins, outs, settings["groups"], *(n for pair in pairs for n in pair), h, w, oh, ow]
    ends = f"{grid_of(source).zero}, {grid_of(target).zero}, {_ends(target)}"
    calls.constants.append(
        f"static const mps_layer {name} = {{{name}_w, {name}_z, {name}_b, {name}_m, {name}_s, {bits}, {int(doubled)}, "
        f"{', '.join(map(str, numbers))}, {ends}}}; /* {op.name}: {bits} bits */\n"
    )
    for line in range(lines):
        x, y = (f"{calls.at(t)} + {line * n}" for t, n in ((op.inputs[0], rows.shape[1]), (op.output, outs)))
        calls.statements.append(f"mps_conv(&{name}, {x}, {y}, row);")


def _operands(calls: Calls, op: Op) -> str:
    """Places, count and how many results each value of an operand serves."""
    target = calls.tensor(op.output)
    count, over = bytes_of(calls.plan, op.output), []
    for name in op.inputs:
        shape = calls.tensor(name).shape
        own = len(shape) - next((k for k, size in enumerate(reversed(shape)) if size != 1), len(shape))
        if shape[:own] != target.shape[:own]:
            raise InputError(
                f"--format c: {op.name} stretches {list(shape[1:])} to {list(target.shape[1:])}: no kernel does"
            )
        over.append(count // bytes_of(calls.plan, name))
    return f"{', '.join(calls.at(name) for name in (*op.inputs, op.output))}, {count}, {over[0]}, {over[1]}"


def _zeros(calls: Calls, op: Op) -> str:
    return ", ".join(str(grid_of(calls.tensor(name)).zero) for name in (*op.inputs, op.output))


def _add(calls: Calls, op: Op, name: str) -> None:
    one, other, out = (_scale(calls.tensor(key)) for key in (*op.inputs, op.output))
    twice = 2 * max(one, other)
    factors = ", ".join(map(_factor, (one / twice, other / twice, twice / ((1 << ADD_SHIFT) * out))))
    calls.statements.append(
        f"mps_add({_operands(calls, op)}, {_zeros(calls, op)}, {factors}, {_ends(calls.tensor(op.output))});"
    )


def _mul(calls: Calls, op: Op, name: str) -> None:
    one, other, out = (_scale(calls.tensor(key)) for key in (*op.inputs, op.output))
    calls.statements.append(
        f"mps_mul({_operands(calls, op)}, {_zeros(calls, op)}, {_factor(one * other / out)}, "
        f"{_ends(calls.tensor(op.output))});"
    )


def _parts(calls: Calls, op: Op, name: str) -> None:
    """A concat, or a single tensor on another grid."""
    target = calls.tensor(op.output)
    axis = op.settings.get("axis", 1)
    outer, stride, at = math.prod(target.shape[1:axis]), math.prod(target.shape[axis:]), 0
    for source in op.inputs:
        tensor = calls.tensor(source)
        take = math.prod(tensor.shape[axis:])
        zeros, factor = f"{grid_of(tensor).zero}, {grid_of(target).zero}", _factor(_scale(tensor) / _scale(target))
        calls.statements.append(
            f"mps_rescale({calls.at(source)}, {calls.at(op.output)} + {at}, {outer}, {take}, {stride}, {zeros}, "
            f"{factor}, {_ends(target)});"
        )
        at += take


def _mean(calls: Calls, op: Op, name: str) -> None:
    source, target, axes = calls.tensor(op.inputs[0]), calls.tensor(op.output), op.settings["axes"]
    if axes != tuple(range(axes[0], len(source.shape))) or axes[0] < 1:
        raise InputError(f"--format c: {op.name} is a mean over axes {list(axes)}; expected the last ones")
    inner = math.prod(source.shape[axes[0] :])
    fixed, shift = mean_multiplier(_scale(source) / _scale(target), inner)
    factor = f"(mps_factor){{{fixed}, {shift}}}"
    calls.statements.append(
        f"mps_mean({calls.at(op.inputs[0])}, {calls.at(op.output)}, {math.prod(source.shape[1 : axes[0]])}, {inner}, "
        f"{_zeros(calls, op)}, {factor}, {_ends(target)});"
    )


def _pool(calls: Calls, op: Op, name: str) -> None:
    source, target, settings = calls.tensor(op.inputs[0]), calls.tensor(op.output), op.settings
    (c, h, w), (_, oh, ow) = _map(source), _map(target)
    before = [pad for pad, _ in settings["pads"]]
    pairs = [_pair(settings[key], 1) for key in ("kernel", "stride")]
    pairs += [_pair(before, 0), _pair(settings["dilation"], 1)]
    numbers = [c, h, w, oh, ow, *(n for pair in pairs for n in pair)]
    calls.constants.append(f"static const mps_window {name} = {{{', '.join(map(str, numbers))}}};\n")
    read = f"&{name}, {calls.at(op.inputs[0])}, {calls.at(op.output)}"
    if op.kind == "maxpool":
        calls.statements.append(f"mps_max_pool({read}, {_ends(target)});")
        return
    factor = _factor(average_factor(math.prod(settings["kernel"]), grid_of(source), grid_of(target)))
    calls.statements.append(f"mps_average_pool({read}, {_zeros(calls, op)}, {factor}, {_ends(target)});")


def _table(calls: Calls, op: Op, name: str) -> None:
    source, target = calls.tensor(op.inputs[0]), calls.tensor(op.output)
    calls.array("int8_t", f"{name}_t", function_table(op, source, grid_of(target)))
    count = bytes_of(calls.plan, op.output)
    calls.statements.append(f"mps_table({calls.at(op.inputs[0])}, {calls.at(op.output)}, {count}, {name}_t);")


def _reshape(calls: Calls, op: Op, name: str) -> None:
    count, ends = bytes_of(calls.plan, op.output), _ends(calls.tensor(op.output))
    calls.statements.append(f"mps_copy({calls.at(op.inputs[0])}, {calls.at(op.output)}, {count}, {ends});")


def _permute(calls: Calls, op: Op, name: str) -> None:
    shape, order = calls.tensor(op.inputs[0]).shape, op.settings["order"]
    if order[0] != 0:
        raise InputError(f"--format c: {op.name} moves the axis of the samples")
    sizes = [shape[axis] for axis in order[1:]]
    strides = [math.prod(shape[axis + 1 :]) for axis in order[1:]]
    calls.array("int32_t", f"{name}_n", sizes)
    calls.array("int32_t", f"{name}_d", strides)
    x, y = calls.at(op.inputs[0]), calls.at(op.output)
    calls.statements.append(f"mps_permute({x}, {y}, {len(sizes)}, {name}_n, {name}_d);")


def _slice(calls: Calls, op: Op, name: str) -> None:
    shape, settings = calls.tensor(op.inputs[0]).shape, op.settings
    axis, count = settings["axis"], calls.tensor(op.output).shape[settings["axis"]]
    numbers = [math.prod(shape[1:axis]), shape[axis], math.prod(shape[axis + 1 :])]
    numbers += [settings["start"], settings["step"], count]
    calls.statements.append(
        f"mps_slice({calls.at(op.inputs[0])}, {calls.at(op.output)}, {', '.join(map(str, numbers))});"
    )


def _nearest(calls: Calls, op: Op, name: str) -> None:
    numbers = [*_map(calls.tensor(op.inputs[0])), *_pair(op.settings["factors"], 1)]
    calls.statements.append(
        f"mps_nearest({calls.at(op.inputs[0])}, {calls.at(op.output)}, {', '.join(map(str, numbers))});"
    )


_WRITERS: dict[str, Callable[[Calls, Op, str], None]] = {
    "conv": _layer,
    "linear": _layer,
    "add": _add,
    "mul": _mul,
    "concat": _parts,
    "rescale": _parts,
    "mean": _mean,
    "maxpool": _pool,
    "avgpool": _pool,
    "table": _table,
    "reshape": _reshape,
    "permute": _permute,
    "slice": _slice,
    "nearest": _nearest,
}
