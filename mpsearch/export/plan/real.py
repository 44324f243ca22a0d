"""Operations of a plan on real numbers, and what the codes of a grid stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils._pytree import tree_map

from mpsearch.export.plan.records import LAYERS, Grid, Op, Plan, Ref, Tensor

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


def compute(
    op: Op,
    parts: Sequence[torch.Tensor],
    result: Tensor,
    layer: Callable[[Op, torch.Tensor], torch.Tensor],
    constant: Callable[[str], torch.Tensor],
) -> torch.Tensor:
    """An operation of any kind on real numbers, the tensors (N, …) that it reads in order.

    `result` is the tensor that it writes, `layer` computes layers, `constant` gives the plan's constants by name.
    """
    x = parts[0]
    if op.kind in LAYERS:
        return layer(op, x)
    if op.kind in ("float", "table"):
        return call(op, dict(zip(op.inputs, parts, strict=True)), constant)
    if op.kind == "rescale":
        return x
    if op.kind in ("add", "mul"):
        return x + parts[1] if op.kind == "add" else x * parts[1]
    if op.kind == "concat":
        return torch.cat(list(parts), op.settings["axis"])
    if op.kind == "mean":
        return x.mean(op.settings["axes"], keepdim=op.settings["keepdim"])
    if op.kind in ("maxpool", "avgpool"):
        return pooled_maximum(op, x, -math.inf) if op.kind == "maxpool" else averaged(op, x)
    return move(op, x, result)


def real_layer(op: Op, x: torch.Tensor) -> torch.Tensor:
    """A layer with its real weight."""
    assert op.weight is not None
    return apply_layer(op, x, torch.from_numpy(op.weight.values), torch.from_numpy(op.weight.bias))


def call(op: Op, read: Mapping[str, torch.Tensor], constant: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """An ATen operation on real numbers."""

    def value(part: Any) -> Any:
        if not isinstance(part, Ref):
            return part
        return read[part.name] if part.name in read else constant(part.name)

    args, kwargs = (tree_map(value, op.settings[key], is_leaf=_is_ref) for key in ("args", "kwargs"))
    result: torch.Tensor = op.settings["target"](*args, **kwargs)
    return result


def constant_of(plan: Plan) -> Callable[[str], torch.Tensor]:
    """The plan's constants as tensors."""
    return lambda name: torch.from_numpy(np.array(plan.constants[name]))


def _is_ref(part: Any) -> bool:
    return isinstance(part, Ref)


def apply_layer(op: Op, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A layer's operation on x (N, …), with a weight (O, I / G, *kernel) and a bias (O,)."""
    settings = op.settings
    if op.kind == "embedding":
        return F.embedding(x, weight)
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


def move(op: Op, x: torch.Tensor, result: Tensor) -> torch.Tensor:
    """The values of x (N, …) where a view puts them."""
    settings = op.settings
    if op.kind == "reshape":
        return x.reshape([-1 if size < 0 else size for size in result.shape])
    if op.kind == "permute":
        return x.permute(settings["order"])
    if op.kind == "slice":
        sliced: torch.Tensor = torch.ops.aten.slice(x, *(settings[key] for key in ("axis", "start", "stop", "step")))
        return sliced
    return F.interpolate(x, scale_factor=[float(factor) for factor in settings["factors"]])
