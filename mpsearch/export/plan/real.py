"""Operations of a plan on real numbers, and what the codes of a grid stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils._pytree import tree_map

from mpsearch.export.plan.records import LAYERS, Grid, Op, Plan, Ref, Tensor, Weight

Array = NDArray[Any]


def real(tensor: Tensor, value: Array) -> Array:
    """The real numbers that a value stands for."""
    if tensor.grid is None:
        return value
    return (value.astype(np.float32) - np.float32(tensor.grid.zero)) * np.float32(tensor.grid.scale)


def quantize(grid: Grid, x: Array) -> NDArray[np.int8]:
    """Real numbers as int8."""
    codes = np.rint(x.astype(np.float32) / np.float32(grid.scale)) + grid.zero
    clipped: NDArray[np.int8] = np.clip(codes, grid.low, grid.high).astype(np.int8)
    return clipped


def compute(op: Op, read: Mapping[str, torch.Tensor], plan: Plan) -> torch.Tensor:
    """An operation of any kind on real numbers."""
    parts = [read[name] for name in op.inputs]
    if op.kind in LAYERS:
        assert op.weight is not None
        return _real_layer(op, parts[0], op.weight)
    if op.kind in ("float", "table"):
        return call(op, read, plan.constants)
    if op.kind == "rescale":
        return parts[0]
    if op.kind in ("add", "mul"):
        return parts[0] + parts[1] if op.kind == "add" else parts[0] * parts[1]
    if op.kind == "concat":
        return torch.cat(parts, op.settings["axis"])
    if op.kind == "mean":
        return parts[0].mean(op.settings["axes"], keepdim=op.settings["keepdim"])
    if op.kind in ("maxpool", "avgpool"):
        return pooled_maximum(op, parts[0], -np.inf) if op.kind == "maxpool" else averaged(op, parts[0])
    return torch.from_numpy(np.ascontiguousarray(move(op, parts[0].numpy(), plan.tensors[op.output])))


def _real_layer(op: Op, x: torch.Tensor, weight: Weight) -> torch.Tensor:
    values = torch.from_numpy(weight.values)
    return (
        F.embedding(x, values) if op.kind == "embedding" else apply_layer(op, x, values, torch.from_numpy(weight.bias))
    )


def call(op: Op, read: Mapping[str, torch.Tensor], constants: Mapping[str, Array]) -> torch.Tensor:
    """An ATen operation on real numbers."""

    def value(part: Any) -> Any:
        if not isinstance(part, Ref):
            return part
        return read[part.name] if part.name in read else torch.from_numpy(np.array(constants[part.name]))

    args, kwargs = (tree_map(value, op.settings[key], is_leaf=_is_ref) for key in ("args", "kwargs"))
    result: torch.Tensor = op.settings["target"](*args, **kwargs)
    return result


def _is_ref(part: Any) -> bool:
    return isinstance(part, Ref)


def apply_layer(op: Op, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A layer's operation on x (N, …), with a weight (O, I / G, *kernel) and a bias (O,)."""
    settings = op.settings
    if op.kind == "linear":
        return F.linear(x, weight, bias)
    rank = weight.dim() - 2
    before = [pad for pad, _ in settings["pads"]]
    if op.kind == "transposed":
        groups = settings["groups"]
        swapped = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
        transposed: Callable[..., torch.Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        more = settings["output_padding"]
        return transposed(x, swapped, bias, settings["stride"], before, more, groups, settings["dilation"])
    convolve: Callable[..., torch.Tensor] = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    if any(pad != behind for pad, behind in settings["pads"]):
        x, before = F.pad(x, [pad for pair in reversed(settings["pads"]) for pad in pair]), [0] * rank
    return convolve(x, weight, bias, settings["stride"], before, settings["dilation"], settings["groups"])


def pooled_maximum(op: Op, x: torch.Tensor, lowest: float) -> torch.Tensor:
    """The maximum over windows of x (N, C, *size), padded with `lowest` at least."""
    settings = op.settings
    pool: Callable[..., torch.Tensor] = (F.max_pool1d, F.max_pool2d)[len(settings["kernel"]) - 1]
    before = [pad for pad, _ in settings["pads"]]
    if any(pad != behind for pad, behind in settings["pads"]):
        pads = [pad for pair in reversed(settings["pads"]) for pad in pair]
        x, before = F.pad(x, pads, value=lowest), [0] * len(before)
    return pool(x, settings["kernel"], settings["stride"], before, settings["dilation"])


def averaged(op: Op, x: torch.Tensor) -> torch.Tensor:
    """The mean over windows of x (N, C, *size)."""
    pool: Callable[..., torch.Tensor] = (F.avg_pool1d, F.avg_pool2d)[len(op.settings["kernel"]) - 1]
    return pool(x, op.settings["kernel"], op.settings["stride"])


def move(op: Op, x: Array, target: Tensor) -> Array:
    """The values of x (N, …) where a view puts them."""
    settings = op.settings
    if op.kind == "reshape":
        sizes = [-1 if size < 0 else size for size in target.shape]
        return x.reshape(sizes)
    if op.kind == "permute":
        return x.transpose(settings["order"])
    if op.kind == "slice":
        place: list[Any] = [slice(None)] * x.ndim
        place[settings["axis"]] = slice(settings["start"], settings["stop"], settings["step"])
        part: Array = x[tuple(place)]
        return part
    for axis, factor in enumerate(settings["factors"]):
        x = x.repeat(factor, 2 + axis)
    return x
