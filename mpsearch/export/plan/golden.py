"""The golden answer: a plan carried out in numpy, integer operations with the arithmetic of TFLite's kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from mpsearch.export.plan.arithmetic import Int, mean_multiplier, multiplier, multipliers, multiply
from mpsearch.export.plan.real import (
    Array,
    apply_layer,
    averaged,
    call,
    compute,
    constant_of,
    move,
    pooled_maximum,
    quantize,
    real,
    real_layer,
)
from mpsearch.export.plan.records import HIGHEST, LOWEST, Grid, Op, Plan, Tensor

ADD_SHIFT = 20  # TFLite adds int8 with so many bits below the point


def execute(plan: Plan, *leaves: Array) -> dict[str, Array]:
    """Every tensor of the plan for the tensors (N, …) of a call: int8 where there is a grid, else real numbers."""
    values: dict[str, Array] = {}
    for name, leaf in zip(plan.inputs, leaves, strict=True):
        values[name] = _stored(plan.tensors[name], leaf)
    for op in plan.ops:
        result = _integer(plan, op, values) if _computes_integers(plan, op) else _real(plan, op, values)
        values[op.output] = result
    return values


def outputs(plan: Plan, values: Mapping[str, Array]) -> tuple[Array, ...]:
    """The network's outputs as real numbers."""
    return tuple(real(plan.tensors[name], values[name]) for name in plan.outputs)


def _stored(tensor: Tensor, x: Array) -> Array:
    if tensor.grid is not None:
        return quantize(tensor.grid, x)
    if tensor.cap is not None:
        return np.clip(x, 0, tensor.cap)
    return x


def _computes_integers(plan: Plan, op: Op) -> bool:
    if plan.is_integer(op):
        return True
    return op.kind == "linear" and op.weight is not None and op.weight.steps is not None


def _integer(plan: Plan, op: Op, values: Mapping[str, Array]) -> Array:
    tensors = [plan.tensors[name] for name in op.inputs]
    read = [values[name] for name in op.inputs]
    target = plan.tensors[op.output]
    result = _INTEGER[op.kind](op, tensors, read, target)
    if target.grid is None:
        return result
    if result.dtype == np.int8:
        return result.clip(target.grid.low, target.grid.high)
    clipped: Array = np.clip(result + target.grid.zero, target.grid.low, target.grid.high).astype(np.int8)
    return clipped


def _grid(tensor: Tensor) -> Grid:
    assert tensor.grid is not None
    return tensor.grid


def _centred(tensor: Tensor, value: Array) -> Int:
    centred: Int = value.astype(np.int64) - _grid(tensor).zero
    return centred


def _layer(op: Op, tensors: list[Tensor], read: list[Array], target: Tensor) -> Array:
    weight, x = op.weight, torch.from_numpy(_centred(tensors[0], read[0]).astype(np.float64))
    assert weight is not None
    assert weight.steps is not None
    # Sums of products of 8-bit numbers are exact in double precision.
    sums = apply_layer(op, x, torch.from_numpy(weight.codes.astype(np.float64))).numpy().astype(np.int64)
    shape = (-1,) if op.kind == "linear" else (-1, *(1,) * (weight.codes.ndim - 2))
    sums = sums + weight.steps.astype(np.int64).reshape(shape)
    factors = np.float64(np.float32(_grid(tensors[0]).scale)) * weight.scale.astype(np.float64)
    if target.grid is None:
        return (sums * factors.reshape(shape)).astype(np.float32)
    fixed, shift = multipliers(factors / np.float64(np.float32(target.grid.scale)))
    return multiply(sums, fixed.reshape(shape), shift.reshape(shape))


def _add(op: Op, tensors: list[Tensor], read: list[Array], target: Tensor) -> Int:
    one, other = map(_grid, tensors)
    twice = 2 * max(np.float64(np.float32(one.scale)), np.float64(np.float32(other.scale)))
    parts = [
        multiply(_centred(tensor, value) << ADD_SHIFT, *multiplier(float(np.float32(_grid(tensor).scale)) / twice))
        for tensor, value in zip(tensors, read, strict=True)
    ]
    out = float(np.float32(_grid(target).scale))
    return multiply(parts[0] + parts[1], *multiplier(twice / ((1 << ADD_SHIFT) * out)))


def _mul(op: Op, tensors: list[Tensor], read: list[Array], target: Tensor) -> Int:
    one, other = (float(np.float32(_grid(tensor).scale)) for tensor in tensors)
    product = _centred(tensors[0], read[0]) * _centred(tensors[1], read[1])
    return multiply(product, *multiplier(one * other / float(np.float32(_grid(target).scale))))


def rescaled(source: Tensor, value: Array, grid: Grid) -> Int:
    """The codes less the zero-point of a value on another grid."""
    factor = float(np.float32(_grid(source).scale)) / float(np.float32(grid.scale))
    return multiply(_centred(source, value), *multiplier(factor))


def _rescale(op: Op, tensors: list[Tensor], read: list[Array], target: Tensor) -> Int:
    return rescaled(tensors[0], read[0], _grid(target))


def _concat(op: Op, tensors: list[Tensor], read: list[Array], target: Tensor) -> Int:
    grid = _grid(target)
    parts = [rescaled(tensor, value, grid) for tensor, value in zip(tensors, read, strict=True)]
    return np.concatenate(parts, op.settings["axis"])


def _mean(op: Op, tensors: list[Tensor], read: list[Array], target: Tensor) -> Int:
    axes = op.settings["axes"]
    sums = _centred(tensors[0], read[0]).sum(axes, keepdims=op.settings["keepdim"])
    count = int(np.prod([read[0].shape[axis] for axis in axes]))
    factor = float(np.float32(_grid(tensors[0]).scale)) / float(np.float32(_grid(target).scale))
    return multiply(sums, *mean_multiplier(factor, count))


def _max_pool(op: Op, tensors: list[Tensor], read: list[Array], target: Tensor) -> Array:
    return pooled_maximum(op, torch.from_numpy(read[0].astype(np.float64)), LOWEST).numpy().astype(np.int8)


def _average_pool(op: Op, tensors: list[Tensor], read: list[Array], target: Tensor) -> Int:
    count = int(np.prod(op.settings["kernel"]))
    means = averaged(op, torch.from_numpy(_centred(tensors[0], read[0]).astype(np.float64)))
    sums = (means * count).round().numpy().astype(np.int64)
    return multiply(sums, *multiplier(average_factor(count, _grid(tensors[0]), _grid(target))))


def average_factor(count: int, source: Grid, target: Grid) -> float:
    """What a sum over a window is multiplied by: that of a depthwise convolution with weights of 1 / count."""
    return float(np.float32(source.scale)) * float(np.float32(1 / count)) / float(np.float32(target.scale))


def _table(op: Op, tensors: list[Tensor], read: list[Array], target: Tensor) -> Array:
    return function_table(op, tensors[0], _grid(target))[read[0].astype(np.int64) - LOWEST]


def function_table(op: Op, source: Tensor, grid: Grid) -> NDArray[np.int8]:
    """What a function of one value gives for each of the 256 codes of its input, in order."""
    codes = np.arange(LOWEST, HIGHEST + 1)
    x = (codes.astype(np.float32) - np.float32(_grid(source).zero)) * np.float32(_grid(source).scale)
    return quantize(grid, call(op, {source.name: torch.from_numpy(x)}, _no_constant).numpy())


def _no_constant(name: str) -> torch.Tensor:
    raise AssertionError(f"a function of one value reads {name}")


def _moved(op: Op, tensors: list[Tensor], read: list[Array], target: Tensor) -> Array:
    return move(op, torch.from_numpy(read[0].astype(np.float64)), target).numpy().astype(np.int8)


_INTEGER: dict[str, Callable[[Op, list[Tensor], list[Array], Tensor], Array]] = {
    **dict.fromkeys(("conv", "transposed", "linear"), _layer),
    "add": _add,
    "mul": _mul,
    "rescale": _rescale,
    "concat": _concat,
    "mean": _mean,
    "maxpool": _max_pool,
    "avgpool": _average_pool,
    "table": _table,
    **dict.fromkeys(("reshape", "permute", "slice", "nearest"), _moved),
}


def _real(plan: Plan, op: Op, values: Mapping[str, Array]) -> Array:
    """The operation on real numbers, rounded to the grid of its result where that has one."""
    read = [torch.from_numpy(np.ascontiguousarray(real(plan.tensors[name], values[name]))) for name in op.inputs]
    result = plan.tensors[op.output]
    return _stored(result, compute(op, read, result, real_layer, constant_of(plan)).numpy())
