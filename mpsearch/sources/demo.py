"""The embedded data set: rendered shapes with surface patterns, and where the network trained on them lies.

A class is one of eight shapes with one of eight patterns. Position, size, rotation, colours, background, clutter, an
occluding bar, light and noise are drawn per image, so that the task needs most of what the network has learned.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpsearch.files.picture import write_picture

Split = Literal["train", "calib", "val"]
Array = NDArray[np.floating[Any]]

SHAPES = ("disc", "square", "triangle", "star", "cross", "ring", "crescent", "clover")
PATTERNS = ("plain", "striped", "checked", "dotted", "ringed", "rayed", "shaded", "waved")
CLASSES = tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS)
VAL_SAMPLES = 2000
SIDE = 48
INPUT_SIZE = (3, SIDE, SIDE)
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)

_SPLITS = {"train": 1, "calib": 2, "val": 3}
_CHUNK = 256
_CLUTTER = 2
_NOISE = 0.05


def weights_path() -> Path:
    """The half-precision weights of torchvision's MobileNetV2 trained by `benchmarks/train_demo.py`."""
    return Path(str(files("mpsearch"))) / "data" / "demo_mobilenetv2.safetensors"


def render(split: Split, count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (count, 48, 48, 3) and class indices (count,); classes take turns.

    An image depends on split, seed and its own index alone, so the first n of any count are the same.
    """
    labels = np.arange(count, dtype=np.int64) * 29 % len(CLASSES)  # 29 is coprime to 64: neighbours differ in both
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        draws = np.stack([_draw(_SPLITS[split], seed, index) for index in range(start, stop)])
        images[start:stop] = _render(draws, labels[start:stop])
    return images, labels


_UNIFORM = 96  # uniform numbers an image
_GRAIN = SIDE * SIDE * 3


def _draw(split: int, seed: int, index: int) -> Array:
    """All random numbers of one image: `_UNIFORM` uniform ones, then the noise of its pixels."""
    rng = np.random.default_rng([split, seed, index])
    uniform = rng.random(_UNIFORM, dtype=np.float32)
    noise = rng.standard_normal(_GRAIN, dtype=np.float32)
    return np.concatenate([uniform, noise])


class _Uniforms:
    """Hands out columns of uniform numbers (N,), scaled."""

    def __init__(self, columns: Array) -> None:
        self._columns = iter(columns.T)

    def __call__(self, low: float, high: float) -> Array:
        """The next column, between low and high, shaped (N, 1, 1) to go with maps (N, H, W)."""
        column: Array = low + (high - low) * next(self._columns)
        return column[:, None, None].astype(np.float32)

    def colour(self) -> Array:
        """A colour (N, 1, 1, 3)."""
        return np.stack([self(0.0, 1.0) for _ in range(3)], axis=-1)


def _render(draws: Array, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    take = _Uniforms(draws[:, :_UNIFORM])
    axis = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE * 2 - 1
    y, x = np.broadcast_to(axis[:, None], (SIDE, SIDE)), np.broadcast_to(axis, (SIDE, SIDE))
    image = _background(take, x, y)
    for _ in range(_CLUTTER):
        kind = (take(0, len(SHAPES))[:, 0, 0]).astype(np.int64)
        cover = _coverage(kind, *_place(take, x, y, 0.1, 0.25, 0.9))
        image = _over(image, take.colour(), cover * take(0.5, 1.0))
    u, v, scale = _place(take, x, y, 0.5, 0.78, 0.2)
    cover = _coverage(labels // len(PATTERNS), u, v, scale)
    light, dark = _two_colours(take)
    pattern = _pattern(labels % len(PATTERNS), take, u, v)[..., None]
    surface = dark + (light - dark) * pattern
    image = image + (surface - image) * cover[..., None]
    bar_u, _, bar_scale = _place(take, x, y, 0.06, 0.12, 0.8)
    hidden = (take(0, 1) < 0.25) * _edge(np.abs(bar_u) - 1, bar_scale)
    image = _over(image, take.colour(), hidden)
    tilt = take(0, 2 * np.pi)
    shade = 1 + take(0, 0.45) * (np.cos(tilt) * x + np.sin(tilt) * y)
    noise = draws[:, _UNIFORM:].reshape(len(draws), SIDE, SIDE, 3)
    image = image * shade[..., None] + _NOISE * (0.3 + take(0, 1.4))[..., None] * noise
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _background(take: _Uniforms, x: Array, y: Array) -> Array:
    """A gradient between two colours, with soft waves (N, H, W, 3)."""
    angle, frequency, phase = take(0, 2 * np.pi), take(1, 7), take(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    blend = 0.5 + 0.35 * along + take(0, 0.3) * np.sin(frequency * across + phase)
    one, two = take.colour(), take.colour()
    return one + (two - one) * np.clip(blend, 0, 1)[..., None]


def _place(
    take: _Uniforms, x: Array, y: Array, smallest: float, largest: float, spread: float
) -> tuple[Array, Array, Array]:
    """An object's own coordinates (N, H, W), its rim at about 1, and its scale (N, 1, 1)."""
    angle, scale = take(0, 2 * np.pi), take(smallest, largest)
    dx, dy = (x - take(-spread, spread)) / scale, (y - take(-spread, spread)) / scale
    return np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx, scale


def _edge(distance: Array, scale: Array) -> Array:
    """Coverage 0 … 1 of pixels at a signed distance in object units."""
    return np.clip(0.5 - distance * scale * SIDE / 2, 0, 1)


def _coverage(kinds: NDArray[np.int64], u: Array, v: Array, scale: Array) -> Array:
    """How much of each pixel the shape `kinds` (N,) covers (N, H, W)."""
    cover = np.zeros_like(u)
    for kind in range(len(SHAPES)):
        rows = kinds == kind
        if rows.any():
            cover[rows] = _edge(_distance(kind, u[rows], v[rows]), scale[rows])
    return cover


def _distance(kind: int, u: Array, v: Array) -> Array:
    """About the signed distance to the rim of shape `kind`, negative inside."""
    radius = np.hypot(u, v)
    angle = np.arctan2(v, u)
    shape = SHAPES[kind]
    distance: Array = radius - 0.9
    if shape == "square":
        distance = np.maximum(np.abs(u), np.abs(v)) - 0.8
    elif shape == "triangle":
        distance = np.maximum(np.maximum(-v, 0.866 * u + 0.5 * v), -0.866 * u + 0.5 * v) - 0.55
    elif shape == "star":
        distance = radius - (0.68 + 0.3 * np.cos(5 * angle))
    elif shape == "cross":
        arm, across = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
        distance = np.maximum(arm - 0.95, across - 0.33)
    elif shape == "ring":
        distance = np.abs(radius - 0.72) - 0.25
    elif shape == "crescent":
        distance = np.maximum(radius - 0.95, 0.72 - np.hypot(u - 0.42, v))
    elif shape == "clover":
        distance = radius - (0.66 + 0.3 * np.cos(3 * angle))
    return distance


def _two_colours(take: _Uniforms) -> tuple[Array, Array]:
    """Two colours (N, 1, 1, 3) that differ clearly in brightness."""
    bright, dark = take.colour(), take.colour()
    contrast = take(0.35, 0.7)[..., None]
    middle = (bright + dark) / 2
    hue = 0.5 * (bright - dark)
    return np.clip(middle + hue * 0.5 + contrast / 2, 0, 1), np.clip(middle - hue * 0.5 - contrast / 2, 0, 1)


def _pattern(kinds: NDArray[np.int64], take: _Uniforms, u: Array, v: Array) -> Array:
    """The surface pattern `kinds` (N,) as a blend 0 … 1 of two colours (N, H, W)."""
    turn, phase, fineness, plain = take(0, 2 * np.pi), take(0, 2 * np.pi), take(0.8, 1.2), take(0, 1)
    p, q = np.cos(turn) * u + np.sin(turn) * v, np.cos(turn) * v - np.sin(turn) * u
    radius, angle = np.hypot(u, v), np.arctan2(q, p)
    waves = {
        "striped": np.sin(9 * fineness * p + phase),
        "checked": np.sin(7 * fineness * p) * np.sin(7 * fineness * q) * 2,
        "dotted": 3 * (np.cos(8 * fineness * p) + np.cos(8 * fineness * q)) - 2.6,
        "ringed": np.sin(11 * fineness * radius + phase),
        "rayed": np.sin(6 * angle + phase),
        "waved": np.sin(8 * fineness * p + 1.6 * np.sin(6 * q) + phase),
    }
    blend = np.broadcast_to(plain, u.shape).copy()
    for kind, name in enumerate(PATTERNS):
        rows = kinds == kind
        if name == "shaded":
            blend[rows] = np.clip(0.5 + 0.6 * p[rows], 0, 1)
        elif name != "plain":
            blend[rows] = np.clip(0.5 + 1.5 * waves[name][rows], 0, 1)
    return blend


def _over(image: Array, colour: Array, cover: Array) -> Array:
    return image + (colour - image) * cover[..., None]


def contact_sheet(path: Path) -> None:
    """Writes a PNG with three images of each class, a row a shape, labelled."""
    from matplotlib.figure import Figure

    images, labels = render("calib", 3 * len(CLASSES))
    figure = Figure(figsize=(15, 7.2), dpi=100, layout="constrained")
    axes = figure.subplots(len(SHAPES), len(PATTERNS))
    for label, axis in enumerate(axes.flat):
        axis.imshow(np.concatenate(list(images[labels == label]), axis=1), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        if label < len(PATTERNS):
            axis.set_title(PATTERNS[label], fontsize=11)
        if label % len(PATTERNS) == 0:
            axis.set_ylabel(SHAPES[label // len(PATTERNS)], fontsize=11)
    write_picture(figure, path)
