"""Layers by kind: a weight, the operation that applies it, and what of its input each output reads.

Whatever code called the operation, a layer is one module of the captured graph. Its weight is always laid out as
(O, I / G, *kernel): output channels first, those of one group reading the same inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from hwmodel.layer import LayerKind


class Layer(nn.Module):
    """Base of all kinds: `weight` (O, I / G, *kernel) and `bias` (O,), which embeddings have none of: (0,).

    `channel_axis` is the axis of outputs that counts output channels. `source` is the path of the parameter that the
    weight is, or is computed from: layers of one source are tied. Where `exact`, the layer is computed in float32
    whatever the arithmetic around it. With `channel_steps`, every channel of quantized inputs has a step of its own.
    """

    kind: ClassVar[LayerKind]
    channel_axis: ClassVar[int]
    weight: nn.Parameter
    bias: nn.Parameter
    groups: int = 1
    exact: bool = False
    source: str = ""
    channel_steps: bool = False

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        bias = weight.new_zeros(0) if bias is None else bias
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The operation itself, in the arithmetic of x."""
        raise NotImplementedError

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """What the layer would give for inputs x with another weight (O, I / G, *kernel) and bias (O,)."""
        if not self.exact:
            return self.compute(x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            return self.compute(x.float(), weight, bias)

    def patches(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """The patches (G, K, M) of inputs x (N, …) at `positions` (M,) of all N × output positions, or at all of
        them; K follows the order of a row of the weight."""
        raise NotImplementedError

    def weight_gradient(self, x: Tensor, slope: Tensor) -> Tensor:
        """The gradient of the weight (O, I / G, *kernel) for inputs x (N, …) and the gradient of the outputs (N, …),
        of one type where both are real, and in that."""
        weight, bias = (tensor.detach().to(slope).requires_grad_() for tensor in (self.weight, self.bias))
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            return torch.autograd.grad(self.compute(x, weight, bias), weight, slope)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_weight(x, self.weight, self.bias)

    def by_group(self, z: Tensor, positions: Tensor | None = None) -> Tensor:
        """Outputs z (N, …) as (G, O / G, M), at `positions` (M,) of all N × output positions, or at all."""
        columns = rows(z, self.channel_axis, positions).T
        return columns[None] if self.groups == 1 else columns.contiguous().view(self.groups, -1, columns.shape[1])

    def positions_of(self, z: Tensor) -> int:
        """How many positions one sample has in outputs z (N, …)."""
        return z[0].numel() // z.shape[self.channel_axis]


class Convolution(Layer):
    """A convolution over one, two or three dimensions of maps (N, C, *size)."""

    kind = "conv"
    channel_axis = 1

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        super().__init__(weight, bias)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.kernel = tuple(weight.shape[2:])
        self._convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel) - 1]

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self._convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    @property
    def pointwise(self) -> bool:
        """It is a linear map at every position."""
        ones = all(size == 1 for size in (*self.kernel, *self.stride, self.groups))
        return ones and not any(before or behind for before, behind in self.pads())

    def weight_gradient(self, x: Tensor, slope: Tensor) -> Tensor:
        if isinstance(self.padding, str):
            return super().weight_gradient(x, slope)
        gradient: Callable[..., Tensor] = (conv1d_weight, conv2d_weight, conv3d_weight)[len(self.kernel) - 1]
        return gradient(x, self.weight.shape, slope, self.stride, self.padding, self.dilation, self.groups)

    def pads(self) -> list[tuple[int, int]]:
        """What is added before and behind, by dimension."""
        if self.padding == "valid":
            return [(0, 0)] * len(self.kernel)
        if isinstance(self.padding, str):  # "same": the odd one goes behind
            totals = [step * (size - 1) for step, size in zip(self.dilation, self.kernel, strict=True)]
            return [(total // 2, total - total // 2) for total in totals]
        return [(pad, pad) for pad in self.padding]

    def patches(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        return _patches(x, self.pads(), self.kernel, self.stride, self.dilation, self.groups, positions)


class TransposedConvolution(Layer):
    """A transposed convolution of maps (N, C, *size): a convolution of the maps with zeros between their pixels."""

    kind = "transposed"
    channel_axis = 1

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        output_padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        super().__init__(_groups_swapped(weight, groups), bias)
        self.stride, self.padding, self.output_padding, self.dilation = stride, padding, output_padding, dilation
        self.groups = groups
        self.kernel = tuple(weight.shape[2:])
        functions = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
        self._convolve: Callable[..., Tensor] = functions[len(self.kernel) - 1]

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight = _groups_swapped(weight, self.groups)
        return self._convolve(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )

    def patches(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        sizes = [step * (size - 1) + 1 for step, size in zip(self.stride, x.shape[2:], strict=True)]
        spread = x.new_zeros(*x.shape[:2], *sizes)
        every: list[Any] = [..., *(slice(None, None, step) for step in self.stride)]
        spread[tuple(every)] = x
        settings = zip(self.kernel, self.dilation, self.padding, self.output_padding, strict=True)
        pads = [(step * (size - 1) - pad, step * (size - 1) - pad + more) for size, step, pad, more in settings]
        ones = (1,) * len(self.kernel)
        patches = _patches(spread, pads, self.kernel, ones, self.dilation, self.groups, positions)
        taps = math.prod(self.kernel)  # read backwards
        groups, _, count = patches.shape
        return patches.view(groups, -1, taps, count).flip(2).view(groups, -1, count)


class Linear(Layer):
    """A linear map of the last axis of inputs (N, …, I)."""

    kind = "linear"
    channel_axis = -1

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    def patches(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        return rows(x, -1, positions).T[None]


class Embedding(Layer):
    """A table of vectors, read by integer ids (N, …): each of its rows (O, I) has a grid of its own, and no bias."""

    kind = "embedding"
    channel_axis = -1

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight, None)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.embedding(x, weight)


def rows(x: Tensor, axis: int, positions: Tensor | None = None) -> Tensor:
    """x (N, …) as rows (M, C), C being its `axis`, at `positions` (M,) of all N × positions, or at all."""
    flat = x.movedim(axis, -1).flatten(0, -2)
    return flat if positions is None else flat[positions]


def layers_in(module: nn.Module) -> dict[str, Layer]:
    """The layers of a captured module by name, in order of registration."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Layer)}


@contextmanager
def watched(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """While it is open, every call of `modules` is shown to `see`: the name, the input and the output."""

    def show(name: str, _: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
        see(name, args[0], z)

    hooks = [module.register_forward_hook(partial(show, name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def keep_outputs(layers: Mapping[str, Layer]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """While it is open, every call of `layers`: the name, the input and the output, which can be differentiated by."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def keep(name: str, x: Tensor, z: Tensor) -> None:
        calls.append((name, x, z if z.requires_grad else z.requires_grad_()))

    with watched(layers, keep):
        yield calls


def _groups_swapped(weight: Tensor, groups: int) -> Tensor:
    """A weight (A, B / G, *kernel) as (B, A / G, *kernel): between a transposed convolution's layout and ours."""
    if groups == 1:
        return weight.transpose(0, 1)
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)


def _patches(
    x: Tensor,
    pads: Sequence[tuple[int, int]],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    positions: Tensor | None,
) -> Tensor:
    """The patches (G, K, M) of maps x (N, C, *size) at `positions` (M,), or at all of them; beyond the maps lie zeros,
    as wide as `pads` say."""
    sizes = x.shape[2:]
    settings = list(zip(sizes, pads, kernel, stride, dilation, strict=True))
    counts = [(size + sum(pad) - step * (taken - 1) - 1) // hop + 1 for size, pad, taken, hop, step in settings]
    if positions is None:
        positions = torch.arange(len(x) * math.prod(counts), device=x.device)
    left, places = positions, []
    for count in reversed(counts):
        places.append(left % count)
        left = left // count
    pixels = left[None]  # (taps, M): of the image; then of the pixel in it
    inside = torch.ones_like(pixels, dtype=torch.bool)
    for place, (size, (before, _), taken, hop, step) in zip(reversed(places), settings, strict=True):
        offsets = step * torch.arange(taken, device=x.device)[:, None] - before
        at = place * hop + offsets
        pixels = (pixels[:, None] * size + at.clamp(0, size - 1)).flatten(0, 1)
        inside = (inside[:, None] & (at >= 0) & (at < size)).flatten(0, 1)
    pixel_rows = x.movedim(1, -1).flatten(0, -2)
    if groups == 1 and len(pixels) == 1 and bool(inside.all()):
        return pixel_rows.index_select(0, pixels[0]).T[None]
    found = pixel_rows.index_select(0, pixels.flatten())
    found.index_fill_(0, (~inside.flatten()).nonzero().flatten(), 0)
    by_tap = found.view(len(pixels), len(positions), -1)
    return by_tap.permute(2, 0, 1).contiguous().view(groups, -1, len(positions))
