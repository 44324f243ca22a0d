"""Small networks with a layer of every kind, and what they are called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Tied(nn.Module):
    """A language model whose last layer has the weights of its first, with a mask of minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Linear(8, 8)
        self.register_buffer("mask", torch.full((5, 5), float("-inf")).triu(1))
        self.register_buffer("places", torch.arange(5))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.places[:, None].float() / 5
        return self.head(x + self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0])


class TwoInputs(nn.Module):
    """Takes an image, and by keyword a dict of a vector and a tuple of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.ids = nn.Conv2d(1, 4, 3), nn.Linear(3, 4), nn.Embedding(5, 4)

    def forward(self, image: Tensor, more: dict[str, Any]) -> dict[str, Tensor]:
        x = self.image(image).mean((2, 3)) + self.vector(more["vector"]) + self.ids(more["ids"][0])
        return {"sum": x, "product": x * self.vector(more["vector"])}


def volumes() -> nn.Module:
    """3-D maps, an affine map of each channel that stays as it is."""
    return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv3d(4, 3, 1))


def sound() -> nn.Module:
    """1-D maps with a batch norm, which is folded."""
    return nn.Sequential(nn.Conv1d(2, 4, 5, stride=2), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 4, 3, groups=2))


def transposed() -> nn.Module:
    """A transposed convolution in groups."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2))


def sequence() -> nn.Module:
    """Linear maps of rank 3."""
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 5))


def smooth() -> nn.Module:
    """Depthwise convolutions that read maps with negative values: an odd number of channels, then two for each."""
    depthwise = nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.SiLU(), nn.Conv2d(5, 10, 3, groups=5)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.SiLU(), *depthwise)


def numbers(*shape: int) -> Tensor:
    """Noise."""
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))


def ids(most: int, *shape: int) -> Tensor:
    """Integers below `most`."""
    return torch.randint(0, most, (4, *shape), generator=torch.Generator().manual_seed(1))


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "volumes": (volumes, lambda: numbers(2, 4, 6, 5)),
    "sound": (sound, lambda: numbers(2, 30)),
    "transposed": (transposed, lambda: numbers(3, 8, 8)),
    "smooth": (smooth, lambda: numbers(3, 8, 8)),
    "sequence": (sequence, lambda: numbers(7, 6)),
    "tied": (Tied, lambda: ids(11, 5)),
    "two inputs": (
        TwoInputs,
        lambda: {"image": numbers(1, 6, 6), "more": {"vector": numbers(3), "ids": (ids(5),)}},
    ),
}
