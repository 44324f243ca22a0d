"""Samples that lie somewhere: images or plain tensors, read when they are chosen, and drawn by a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mpsearch.sources.split import Normalization, Split

Pixels = NDArray[np.uint8]
Chosen = NDArray[np.intp]

USUAL = 256 / 224  # images are scaled to this times the input's short side before the centre is cropped


@dataclass(frozen=True, slots=True)
class Stored:
    """`count` samples with their `targets`, a tensor (count, …), a list of count things, or None.

    Images are read one by one: `image(i)` is uint8 (h, w, channels), and `size` their (height, width) where all have
    the same. Other samples are the rows of `plain`, a tensor (count, …) that goes into the network as it is.
    """

    count: int
    targets: Tensor | list[Any] | None = None
    image: Callable[[int], Pixels] | None = None
    size: tuple[int, int] | None = None
    channels: int = 3
    plain: Tensor | None = None

    @property
    def noun(self) -> str:
        """What the samples are called."""
        return "images" if self.image is not None else "samples"

    def part(self, chosen: Chosen) -> Stored:
        """Some of the samples."""
        image, plain = self.image, self.plain
        rows, targets = torch.from_numpy(chosen), self.targets
        return Stored(
            len(chosen),
            [targets[i] for i in chosen] if isinstance(targets, list) else None if targets is None else targets[rows],
            None if image is None else lambda i: image(int(chosen[i])),
            self.size,
            self.channels,
            None if plain is None else plain[rows],
        )

    def read(self, size: tuple[int, int] | None, normalization: Normalization | None, labelled: bool) -> Split:
        """All samples, images fitted to `size` and normalised; with their targets where `labelled`."""
        targets = self.targets if labelled else None
        if self.plain is not None:
            return Split.of(self.plain, targets)
        assert self.image is not None
        assert size is not None
        image, pixels = self.image, np.empty((self.count, *size, self.channels), dtype=np.uint8)

        def fill(row: int) -> None:
            pixels[row] = fit(image(row), size)

        with ThreadPool(torch.get_num_threads()) as pool:
            pool.map(fill, range(self.count), chunksize=8)
        return Split.of(torch.from_numpy(pixels), targets, normalization)


def fit(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """An image (h, w, channels) at `size`: as it is, or its short side at 256/224 of that and the centre cropped."""
    height, width = size
    if pixels.shape[:2] == size:
        return pixels
    scale = max(math.ceil(side * USUAL) / have for side, have in zip(size, pixels.shape[:2], strict=True))
    tall, wide = (max(want, round(have * scale)) for want, have in zip(size, pixels.shape[:2], strict=True))
    top, left = (tall - height) // 2, (wide - width) // 2
    return _resized(pixels, wide, tall)[top : top + height, left : left + width]


def _resized(pixels: Pixels, wide: int, tall: int) -> Pixels:
    def resize(part: Any) -> Any:
        return np.asarray(Image.fromarray(part).resize((wide, tall), Image.Resampling.BILINEAR))

    if pixels.shape[2] == 3:
        return np.asarray(resize(pixels))
    return np.stack([resize(np.ascontiguousarray(channel)) for channel in np.moveaxis(pixels, 2, 0)], axis=2)


def draw(count: int, seed: int) -> Chosen:
    """The order in which samples are drawn: a smaller draw is the beginning of a larger one."""
    return np.random.default_rng([seed, 0xDA7A]).permutation(count)
