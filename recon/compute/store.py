"""Where the inputs and outputs of units are kept: on the compute device, or in files where they are too large."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hwmodel import InputError
from recon.compute.arithmetic import fast, picked, slices

ALIVE = 4  # a unit's inputs and outputs, the float network's, and the inputs of the next unit
BLOCK = bytes(2**20)


class Store:
    """Keeps tensors on `device` within `memory_bytes` of it: no more than four are alive at a time, so larger ones than
    a fourth of it go to files. These have no names: each is gone with its tensor, or with the process."""

    def __init__(self, memory_bytes: int, device: torch.device) -> None:
        self.device = device
        self.largest = memory_bytes / ALIVE

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor to be written to; maps (N, C, H, W) lie channels-last, as they are computed.

        Raises InputError where it needs a file and the disk has no room.
        """
        if len(shape) == 4:
            n, c, h, w = shape
            return self._empty((n, h, w, c), dtype).permute(0, 3, 1, 2)
        return self._empty(shape, dtype)

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = math.prod(shape)
        if count * dtype.itemsize <= self.largest:
            return torch.empty(shape, dtype=dtype, device=self.device)
        return torch.frombuffer(_mapped(count * dtype.itemsize), dtype=dtype).view(shape)

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


def _mapped(size: int) -> mmap.mmap:
    """The memory of a file without a name, `size` bytes that the disk has promised to have: a map of a file with holes
    would end the process when the disk is full."""
    try:
        with tempfile.TemporaryFile(prefix="mpsearch-") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for start in range(0, size, len(BLOCK)):
                    file.write(BLOCK[: size - start])
                file.flush()
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise InputError(
            f"cannot keep {size:,} bytes of the inputs of blocks in {tempfile.gettempdir()} ({error.strerror}): make "
            "room there, set TMPDIR to a folder that has it, or raise --cache-memory; the same command goes on from "
            "here"
        ) from None
