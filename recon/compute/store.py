"""Where the inputs and outputs of units are kept: on the compute device, or in files where they are too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from recon.compute.arithmetic import fast, picked, slices

ALIVE = 4  # a unit's inputs and outputs, the float network's, and the inputs of the next unit


class Store:
    """Keeps tensors on `device` within `memory_bytes` of it: no more than four are alive at a time, so larger ones than
    a fourth of it go to files. A context manager; its files are gone when it closes."""

    def __init__(self, memory_bytes: int, device: torch.device) -> None:
        self.device = device
        self.largest = memory_bytes / ALIVE
        self._files = 0
        self._folder = TemporaryDirectory(prefix="mpsearch-")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor to be written to; maps (N, C, H, W) lie channels-last, as they are computed."""
        if len(shape) == 4:
            n, c, h, w = shape
            return self._empty((n, h, w, c), dtype).permute(0, 3, 1, 2)
        return self._empty(shape, dtype)

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = math.prod(shape)
        if count * dtype.itemsize <= self.largest:
            return torch.empty(shape, dtype=dtype, device=self.device)
        path = Path(self._folder.name) / str(self._files)
        self._files += 1
        tensor = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)
        path.unlink()  # the file lives as long as the tensor that maps it
        return tensor

    @torch.no_grad()
    def map(self, function: Callable[..., Sequence[Tensor]], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors that a function of tensors (N, …) gives, batch by batch in fast arithmetic."""
        count = len(leaves[0])
        kept: list[Tensor] = []
        with fast(self.device):
            for part in slices(count):
                results = function(*picked(leaves, part, self.device))
                if not kept:
                    kept = [self.empty((count, *y.shape[1:]), y.dtype) for y in results]
                for whole, y in zip(kept, results, strict=True):
                    whole[part] = y
        return tuple(kept)
