"""Where and how tensors are computed: the device, the fast arithmetic, and batches."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain

import torch
from torch import Tensor, nn

BATCH = 64
PART = 2**17  # values, of which a few slices stay in the cache of a core
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def best_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(module: nn.Module) -> torch.device:
    """Where a module is, and so computes."""
    return next((tensor.device for tensor in chain(module.parameters(), module.buffers())), torch.device("cpu"))


def fast_dtype(where: torch.device) -> torch.dtype:
    """bfloat16 where the hardware of a device multiplies it, else float32.

    On a CPU with AVX-512 BF16, channels-last bfloat16 runs MobileNetV2 3-5 times as fast as float32; without it
    bfloat16 is emulated and slower.
    """
    if where.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capable = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if capable else torch.float32


def fast(where: torch.device) -> AbstractContextManager[object]:
    """A context for training-time arithmetic in `fast_dtype`. Accuracies are always measured outside of it."""
    dtype = fast_dtype(where)
    return nullcontext() if dtype == torch.float32 else torch.autocast(where.type, dtype)


@contextmanager
def single_precision() -> Iterator[None]:
    """While it is open, the autocast of a user's code does nothing: networks are seen, and compared, in float32."""
    kind = torch.amp.autocast_mode.autocast
    kept = kind.__enter__, kind.__exit__
    kind.__enter__, kind.__exit__ = (lambda self: self), (lambda self, *error: None)  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.__enter__, kind.__exit__ = kept  # type: ignore[method-assign]


def keep_freed_memory() -> None:
    """Tells glibc to reuse large blocks of memory, which it would give back to the system after every use.

    Otherwise each training step faults its activations in anew: a quarter to a third of the time on a CPU. Elsewhere
    than on glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def channels_last(x: Tensor) -> Tensor:
    """The same values, channels-last where there are feature maps."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


def parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same consecutive slices of tensors (N, …), or (1, …) for all of N; of maps (N, C, H, W) as (n, h, W, C).

    On a CPU they have about `PART` values: several operations on one of them after another cost little more than one
    operation on the whole. Elsewhere the whole is one slice.
    """
    first, *others = (tensor.movedim(1, -1) if tensor.dim() == 4 else tensor for tensor in tensors)
    if first.device.type != "cpu":
        yield first, *others
        return
    count, size = len(first), max(1, math.prod(first.shape[1:]))
    step = max(1, PART // size)
    for start in range(0, count, step):
        some = [tensor[start : start + step] if len(tensor) == count else tensor for tensor in (first, *others)]
        if size <= PART or first.dim() < 4:
            yield tuple(some)
        else:
            rows = max(1, PART * first.shape[1] // size)
            yield from zip(*(torch.split(tensor, rows, dim=1) for tensor in some), strict=True)


def picked(leaves: Sequence[Tensor], pick: Tensor | slice, where: torch.device) -> list[Tensor]:
    """The samples `pick` of tensors (N, …), on a device, laid out as they are computed with."""
    return [channels_last(leaf[pick].to(where)) for leaf in leaves]


def slices(count: int, size: int = BATCH) -> Iterator[slice]:
    """Consecutive slices of at most `size` of `count` samples."""
    for start in range(0, count, size):
        yield slice(start, start + size)


def positions_of(x: Tensor) -> int:
    """How many positions one image has in maps x (N, C, H, W) or rows x (N, …, C)."""
    return x[0].numel() // x.shape[1 if x.dim() == 4 else -1]


def mixed_order(x: Tensor) -> Tensor:
    """Indices (N,) of x (N, …) in one random order: images may be sorted by class, so the first ones will not do."""
    return torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
