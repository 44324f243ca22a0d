"""A set of samples, with what they should give where that is known: what to calibrate or to measure on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hwmodel.errors import InputError
from recon.graph.samples import Samples


@dataclass(frozen=True, slots=True)
class Normalization:
    """(pixel / 255 - mean) / std by channel: what a network takes instead of pixels, their channels in reverse order
    first where it is made for `bgr`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (N, H, W, C) to float32 (N, C, H, W), channels last in memory."""
        shift, scale = (
            255.0 * torch.tensor(values, dtype=torch.float32, device=pixels.device).view(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        if self.bgr:
            pixels = pixels.flip(3)
        return pixels.permute(0, 3, 1, 2).float().sub_(shift).div_(scale)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """N samples as they are kept: as the network takes them or, with a `normalization`, images uint8 (N, H, W, C),
    perhaps beside real numbers.

    `targets` are a pytree of tensors (N, …), a list of N things, or None without labels. `fingerprint` is of all of it.
    """

    stored: Samples
    targets: Any
    fingerprint: str
    normalization: Normalization | None = None

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def labelled(self) -> bool:
        """There is something to measure against."""
        return self.targets is not None

    @property
    def samples(self) -> Samples:
        """All samples as the network takes them."""
        return self._ready(self.stored)

    def first(self, count: int) -> Split:
        """The first `count` samples; the fingerprint stays that of all."""
        part = slice(count)
        return replace(self, stored=self.stored[part], targets=_part(self.targets, part))

    def batches(self, size: int) -> Iterator[tuple[Samples, Any]]:
        """Samples as the network takes them, at most `size` at a time, with their targets (None without labels)."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self._ready(self.stored[part]), _part(self.targets, part)

    def _ready(self, samples: Samples) -> Samples:
        if self.normalization is None:
            return samples
        ready = (leaf if leaf.is_floating_point() else self.normalization(leaf) for leaf in samples.leaves)
        return Samples(tuple(ready), samples.spec)

    @classmethod
    def of(cls, samples: Any, targets: Any = None, normalization: Normalization | None = None) -> Split:
        """A split with its fingerprint. Raises InputError where targets are not as many as samples."""
        stored = Samples.of(samples)
        if isinstance(targets, list):
            counts = {len(targets)}
        else:
            counts = {len(leaf) if leaf.dim() else 0 for leaf in tree_leaves(targets) if isinstance(leaf, Tensor)}
        if counts - {len(stored)}:
            raise InputError(f"targets must be as many as samples ({len(stored)}), got {sorted(counts)[0]}")
        digest = hashlib.sha256(repr(normalization).encode())
        for leaf in (*stored.leaves, *tree_leaves(targets)):
            if isinstance(leaf, Tensor):
                digest.update(f"{leaf.dtype} {list(leaf.shape)}\n".encode())
                digest.update(leaf.detach().cpu().contiguous().numpy().data)
            else:
                digest.update(repr(leaf).encode())
        return cls(stored, targets, digest.hexdigest(), normalization)


def _part(targets: Any, part: slice) -> Any:
    if isinstance(targets, Sequence) and not isinstance(targets, tuple):
        return targets[part]
    return None if targets is None else tree_map(lambda leaf: leaf[part], targets)
