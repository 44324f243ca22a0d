"""Layers for tests: every kind that a network can hold, and small random ones."""

from __future__ import annotations

import random

from hwmodel.layer import LayerSpec, LayerTable


def conv(
    name: str,
    into: int,
    out: int,
    kernel: tuple[int, int] = (3, 3),
    side: tuple[int, int] = (14, 14),
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    uses: int = 1,
) -> LayerSpec:
    """A convolution with "same" padding."""
    height, width = (-(-size // stride) for size in side)
    return LayerSpec(
        name, "conv", into, out, kernel, (stride, stride), (dilation, dilation), groups, side, (height, width),
        name, name, uses,
    )  # fmt: skip


def linear(name: str, into: int, out: int, positions: int = 1) -> LayerSpec:
    """A fully connected layer."""
    one = (1, 1)
    return LayerSpec(name, "linear", into, out, one, one, one, 1, (positions, 1), (positions, 1), name, name)


KINDS = (
    conv("plain", 64, 96),
    conv("image", 3, 32, (7, 7), (56, 56), 2),
    conv("pointwise", 96, 24, (1, 1)),
    conv("one pixel", 64, 64, (1, 1), (1, 1)),
    conv("depthwise", 96, 96, groups=96),
    conv("multiplier", 32, 64, groups=32),
    conv("grouped", 64, 128, groups=4),
    conv("strided", 64, 64, stride=2, side=(15, 13)),
    conv("dilated", 32, 32, dilation=2),
    conv("flat", 48, 48, (1, 7), (9, 17)),
    conv("wide step", 16, 16, (1, 1), (28, 28), 3),
    conv("twice", 32, 32, uses=2),
    linear("classifier", 1280, 1000),
    linear("tokens", 96, 192, 49),
)
EVERY = LayerTable("every kind", (3, 224, 224), KINDS)


def some_layers(count: int, seed: int) -> LayerTable:
    """Small random layers."""
    rng = random.Random(seed)
    layers = []
    for i in range(count):
        groups = rng.choice((1, 1, 1, 2, 5))
        into, out = (groups * rng.randint(1, 40) for _ in range(2))
        kernel = (rng.randint(1, 4), rng.randint(1, 4))
        side = (rng.randint(1, 20), rng.randint(1, 20))
        layers.append(conv(f"r{i}", into, out, kernel, side, rng.randint(1, 3), rng.randint(1, 2), groups))
    return LayerTable("random", (3, 32, 32), tuple(layers))
