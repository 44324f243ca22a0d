"""Samples: what a network is called with, as any pytree of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, keystr, tree_flatten, tree_flatten_with_path, tree_unflatten

from hwmodel.errors import InputError

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """N samples: the tensors (N, …) of one call of the network in pytree order, and the structure around them.

    `spec` is the structure of (positional arguments, keyword arguments). Indexing takes some of the samples.
    """

    leaves: tuple[Tensor, ...]
    spec: TreeSpec

    def __post_init__(self) -> None:
        if not self.leaves:
            raise InputError("a batch has no tensor: expected a tensor, a tuple of tensors or a dict of tensors")
        for leaf in self.leaves:
            if not isinstance(leaf, Tensor):
                raise InputError(f"a batch must hold tensors only, got a {type(leaf).__name__}")
        counts = {len(leaf) if leaf.dim() else 0 for leaf in self.leaves}
        if len(counts) > 1 or 0 in counts:
            shapes = ", ".join(str(list(leaf.shape)) for leaf in self.leaves)
            raise InputError(f"all tensors of a batch must have the samples first, as many in each; got {shapes}")

    def __len__(self) -> int:
        return len(self.leaves[0])

    def __getitem__(self, index: Tensor | slice) -> Samples:
        return Samples(tuple(leaf[index] for leaf in self.leaves), self.spec)

    def to(self, device: torch.device) -> Samples:
        """The same samples on a device."""
        return Samples(tuple(leaf.to(device) for leaf in self.leaves), self.spec)

    def single(self) -> Samples:
        """The same samples, real numbers in single precision."""
        return Samples(tuple(single(leaf) for leaf in self.leaves), self.spec)

    @property
    def call(self) -> Call:
        """Positional and keyword arguments."""
        args, kwargs = tree_unflatten(list(self.leaves), self.spec)
        return args, kwargs

    def batches(self, size: int) -> Iterator[Samples]:
        """Consecutive batches of at most `size` samples."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @classmethod
    def of(cls, batch: Any) -> Samples:
        """A batch as users write it: a tensor, a tuple or list of positional arguments, a dict of keyword arguments.

        Raises InputError where something else is in it, or tensors disagree on the number of samples.
        """
        if isinstance(batch, Samples):
            return batch
        if isinstance(batch, Mapping):
            call: Call = ((), dict(sorted(batch.items())))  # in whatever order they come
        elif isinstance(batch, tuple | list):
            call = (tuple(batch), {})
        else:
            call = ((batch,), {})
        leaves, spec = tree_flatten(call)
        return cls(tuple(leaves), spec)

    @classmethod
    def noise(cls, *shapes: tuple[int, ...], count: int = 3) -> Samples:
        """Samples of normally distributed noise, always the same, for positional arguments of these shapes."""
        generator = torch.Generator().manual_seed(0)
        return cls.of(tuple(torch.randn(count, *shape, generator=generator) for shape in shapes))

    @classmethod
    def join(cls, batches: Iterable[Any], most: int | None = None) -> Samples:
        """Batches one after another, the first `most` samples. Raises InputError where their structures differ."""
        parts: list[Samples] = []
        count = 0
        for batch in batches:
            part = cls.of(batch)
            if parts and part.spec != parts[0].spec:
                raise InputError(f"batches must be alike: the first is {parts[0].spec}, another one {part.spec}")
            parts.append(part)
            count += len(part)
            if most is not None and count >= most:
                break
        if not parts:
            raise InputError("there are no calibration batches: the iterable is empty")
        try:
            leaves = tuple(torch.cat(tensors) for tensors in zip(*(part.leaves for part in parts), strict=True))
        except RuntimeError as error:
            raise InputError(f"batches must be alike beyond the number of samples: {error}") from None
        return cls(leaves, parts[0].spec)[slice(most)]


def single(leaf: Tensor) -> Tensor:
    """Real numbers in single precision; others as they are."""
    return leaf.float() if leaf.is_floating_point() else leaf


def named_parts(outputs: Any) -> dict[str, Tensor]:
    """The tensors of an output pytree by their path: "" for a single tensor, else "logits", "0", "boxes.1", …"""
    paths, _ = tree_flatten_with_path(outputs)
    return {path_name(path): leaf for path, leaf in paths if isinstance(leaf, Tensor)}


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as text: keys and indices joined by dots."""
    return ".".join(keystr((key,)).strip("[].'\"") for key in path)
