"""Images: a folder in the ImageNet layout, `.npz` files, the user's own code, or the embedded data set."""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hwmodel.errors import InputError
from mpsearch.sources.factory import call_factory, canonical, is_factory

Pixels = NDArray[np.uint8]

MIN_CALIBRATION = 16  # below, the statistics of a layer's inputs are those of single images
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """N images: `x` uint8 (N, H, W, 3), `y` int64 (N,) or None; `fingerprint` is a sha256 of both."""

    x: Tensor
    y: Tensor | None
    fingerprint: str

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, slots=True, eq=False)
class DataSource:
    """Images to calibrate on (never labelled), images to measure on where there are any, and their origin in a line."""

    calib: Images
    val: Images | None
    source: str


@dataclass(frozen=True, slots=True)
class _Split:
    """`count` images that are read one by one: `read(i)` gives uint8 (h, w, 3). `labels` is int64 (count,)."""

    count: int
    read: Callable[[int], Pixels]
    labels: NDArray[np.int64] | None


def load_data(
    path: Path | str | None,
    *,
    input_size: tuple[int, int, int],
    calib_samples: int,
    val_samples: int | None,
    seed: int,
    classes: int | None,
    labels_needed: bool = True,
) -> DataSource:
    """Images of `input_size` (3, height, width), sampled by `seed`. Calibration images come in random order, and a
    smaller sample is the beginning of a larger one; validation images keep their stored order.

    `path` is one of
    - a folder with `calib/` (or `train/`) and `val/`. In `val/` each class has a folder; its index is the folder's line
      in `classes.txt` (from 0, the name is the line's first word), without that file its rank among the folders;
    - a folder with `calib.npz` and `val.npz`, `x` uint8 (N, H, W, 3) and `y` integers (N,); or one such file, which is
      divided: `calib_samples` images (half of them at most) to calibrate, the others to measure;
    - `file.py:factory` or `package.module:factory`, returning `(calib_x, val_x, val_y)` as such arrays or tensors;
    - None: the embedded data set.
    Images of another size are resized (short side to 256/224 of the input's) and cropped at the centre. Without
    `val_samples` all images are measured on. Raises InputError where images are missing, damaged or fewer than 16, or
    labels do not fit the `classes` of the model.
    """
    if calib_samples < MIN_CALIBRATION:
        raise InputError(f"at least {MIN_CALIBRATION} calibration images are needed, {calib_samples} were asked for")
    if val_samples is not None and val_samples < 1:
        raise InputError(f"at least 1 validation image is needed, {val_samples} were asked for")
    if path is None:
        return _load_demo(input_size, calib_samples, val_samples, seed, classes)
    calib, val = _open(path, calib_samples, seed, classes)
    if calib.count < MIN_CALIBRATION:
        raise InputError(f"{path}: at least {MIN_CALIBRATION} calibration images are needed, got {calib.count}")
    if labels_needed and (val is None or val.labels is None):
        what = "no validation images" if val is None else "validation images without labels"
        raise InputError(f"{path}: has {what}; expected val/ with a folder per class, or val.npz with x and y")
    if val is not None and val.labels is not None and classes is not None:
        _check_labels(path, val.labels, classes)
    size = (input_size[1], input_size[2])
    calibration = _take(calib, calib_samples, seed, size, labelled=False)
    validation = None if val is None else _take(val, val_samples or val.count, seed, size, labelled=True)
    counts = f"{len(calibration)} of {calib.count} calibration images"
    if calib.count < calib_samples:
        counts += f" ({calib_samples} asked for)"
    if val is not None and validation is not None:
        counts += f", {len(validation)} of {val.count} validation images"
    return DataSource(calibration, validation, f"{path}: {counts}")


def normalize(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std: uint8 (N, H, W, 3) to float32 (N, 3, H, W), channels last in memory."""
    shift, scale = (
        255.0 * torch.tensor(values, dtype=torch.float32, device=x.device).view(1, 3, 1, 1) for values in (mean, std)
    )
    return x.permute(0, 3, 1, 2).float().sub_(shift).div_(scale)


def make_images(x: Tensor, y: Tensor | None) -> Images:
    """Images from x uint8 (N, H, W, 3) and y int64 (N,), with their fingerprint. Raises InputError for other arrays."""
    if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[3] != 3 or not len(x):
        raise InputError(f"images must be uint8 (N, height, width, 3) with N at least 1, got {x.dtype} {list(x.shape)}")
    if y is not None and (y.dtype != torch.int64 or y.shape != x.shape[:1]):
        raise InputError(f"labels must be int64 ({len(x)},), got {y.dtype} {list(y.shape)}")
    digest = hashlib.sha256(str(list(x.shape)).encode())
    digest.update(x.contiguous().numpy().data)
    if y is not None:
        digest.update(y.contiguous().numpy().data)
    return Images(x, y, digest.hexdigest())


def _open(path: Path | str, calib_samples: int, seed: int, classes: int | None) -> tuple[_Split, _Split | None]:
    if is_factory(str(path)) and not Path(path).exists():
        return _open_factory(canonical(str(path)))
    path = Path(path)
    if path.is_file() and path.suffix == ".npz":
        return _divide(_open_npz(path), calib_samples, seed)
    if not path.is_dir():
        raise InputError(f"no such data: {path}; expected a folder with calib/ and val/, .npz or file.py:factory")
    if (path / "calib.npz").is_file():
        val = path / "val.npz"
        return _open_npz(path / "calib.npz"), _open_npz(val) if val.is_file() else None
    for name in ("calib", "train"):
        if (path / name).is_dir():
            return _open_folder(path / name), _open_classes(path, classes) if (path / "val").is_dir() else None
    raise InputError(f"{path}: expected calib/ (or train/) and val/, or calib.npz and val.npz; found neither")


def _open_folder(folder: Path, labels: dict[str, int] | None = None) -> _Split:
    """All images under a folder by ascending path; `labels` gives the class of each folder directly in it."""
    files: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    files = sorted((file for file in files if file.suffix.lower() in _SUFFIXES), key=lambda file: file.parts)
    if not files:
        raise InputError(f"{folder}: no images; expected files of {', '.join(sorted(_SUFFIXES))}")
    known = None
    if labels is not None:
        known = np.array([labels[file.relative_to(folder).parts[0]] for file in files], dtype=np.int64)
    return _Split(len(files), lambda i: _decode(files[i]), known)


def _open_classes(root: Path, classes: int | None) -> _Split:
    """`val/` with its labels; without, where images lie in `val/` itself."""
    folder = root / "val"
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    if any(entry.is_file() and entry.suffix.lower() in _SUFFIXES for entry in entries):
        return _open_folder(folder)
    names = sorted(entry.name for entry in entries if entry.is_dir())
    listing = root / "classes.txt"
    if listing.is_file():
        return _open_folder(folder, _listed(listing, names, classes))
    if classes is not None and len(names) != classes:
        raise InputError(
            f"{folder} has {len(names)} class folders but the model {classes} classes; put a classes.txt with one "
            f"folder name per line, in the order of the model's classes, into {root}"
        )
    return _open_folder(folder, {name: index for index, name in enumerate(names)})


def _listed(listing: Path, names: list[str], classes: int | None) -> dict[str, int]:
    """The class index of each folder name, from `classes.txt`."""
    try:
        lines = [line.split() for line in listing.read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{listing} cannot be read ({error})") from error
    index = {words[0]: number for number, words in enumerate(lines) if words}
    if classes is not None and len(lines) != classes:
        raise InputError(f"{listing} has {len(lines)} lines but the model {classes} classes; there must be as many")
    if len(index) != len(lines):
        raise InputError(f"{listing}: {len(lines)} lines hold {len(index)} distinct names; each line must name a class")
    for name in names:
        if name not in index:
            raise InputError(f"{listing} does not list {name}, a folder of val/; add its line or remove the folder")
    return index


def _open_npz(path: Path) -> _Split:
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files if key in ("x", "y")}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is no readable .npz file of plain arrays ({error}); write it again") from error
    if "x" not in arrays:
        raise InputError(f"{path} must hold an array x of images, uint8 (N, height, width, 3); it has none")
    return _arrays(arrays["x"], arrays.get("y"), str(path))


def _open_factory(reference: str) -> tuple[_Split, _Split | None]:
    made = call_factory(reference)
    if not isinstance(made, tuple | list) or len(made) != 3:
        raise InputError(f"{reference}: the factory must return (calib_x, val_x, val_y), got a {type(made).__name__}")
    calib_x, val_x, val_y = made
    calib = _arrays(calib_x, None, f"{reference} calib_x")
    return calib, None if val_x is None else _arrays(val_x, val_y, f"{reference} val_x, val_y")


def _arrays(x: Any, y: Any, source: str) -> _Split:
    x = np.asarray(x)
    if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
        raise InputError(f"{source}: images have NaN or infinite values; expected x as uint8 (N, height, width, 3)")
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3 or 0 in x.shape[1:3]:
        raise InputError(f"{source}: x must be uint8 (N, height, width, 3), got {x.dtype} {list(x.shape)}")
    if not len(x):
        raise InputError(f"{source}: x has no images")
    labels = None
    if y is not None:
        y = np.asarray(y)
        if not np.issubdtype(y.dtype, np.integer) or y.shape != x.shape[:1]:
            raise InputError(f"{source}: y must be integers ({len(x)},), got {y.dtype} {list(y.shape)}")
        labels = y.astype(np.int64)
    return _Split(len(x), lambda i: x[i], labels)


def _divide(split: _Split, calib_samples: int, seed: int) -> tuple[_Split, _Split]:
    order = _rng(seed).permutation(split.count)
    first = min(calib_samples, split.count // 2)
    calib, val = (_part(split, np.sort(part)) for part in (order[:first], order[first:]))
    return calib, val


def _part(split: _Split, chosen: NDArray[np.intp]) -> _Split:
    labels = None if split.labels is None else split.labels[chosen]
    return _Split(len(chosen), lambda i: split.read(int(chosen[i])), labels)


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 0xDA7A])


def _take(split: _Split, samples: int, seed: int, size: tuple[int, int], *, labelled: bool) -> Images:
    """`samples` of a split, resized: in the order of a permutation, or sorted where `labelled`."""
    chosen = _rng(seed).permutation(split.count)[:samples]
    chosen = np.sort(chosen) if labelled else chosen
    x = np.empty((len(chosen), *size, 3), dtype=np.uint8)

    def fill(row: int) -> None:
        x[row] = _fit(split.read(int(chosen[row])), size)

    with ThreadPool(torch.get_num_threads()) as pool:
        pool.map(fill, range(len(chosen)), chunksize=8)
    labels = split.labels[chosen] if labelled and split.labels is not None else None
    return make_images(torch.from_numpy(x), None if labels is None else torch.from_numpy(labels))


def _decode(file: Path) -> Pixels:
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):  # 16 bits, which Pillow's conversion would clip at 255
                return np.repeat((np.asarray(image) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
            return np.asarray((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"image {file} cannot be read ({error}); replace or remove it") from error


def _fit(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """An image (h, w, 3) at `size`: as it is, or its short side at 256/224 of the size and the centre cropped."""
    height, width = size
    if pixels.shape[:2] == size:
        return pixels
    scale = max(math.ceil(side * 256 / 224) / have for side, have in zip(size, pixels.shape[:2], strict=True))
    tall, wide = (max(want, round(have * scale)) for want, have in zip(size, pixels.shape[:2], strict=True))
    resized = np.asarray(Image.fromarray(pixels).resize((wide, tall), Image.Resampling.BILINEAR))
    top, left = (tall - height) // 2, (wide - width) // 2
    return resized[top : top + height, left : left + width]


def _check_labels(path: Path | str, labels: NDArray[np.int64], classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(f"{path}: labels must be 0 to {classes - 1}, the model's classes; got {low} to {high}")


def _load_demo(
    input_size: tuple[int, int, int], calib_samples: int, val_samples: int | None, seed: int, classes: int | None
) -> DataSource:
    from mpsearch.sources import demo

    if input_size != tuple(demo.INPUT_SIZE) or classes not in (None, len(demo.CLASSES)):
        raise InputError(
            f"the embedded data set has {len(demo.CLASSES)} classes and images of {demo.INPUT_SIZE}, the model has "
            f"{classes} and takes {input_size}; give --data"
        )
    calib, _ = demo.render("calib", calib_samples, seed)
    val_x, val_y = demo.render("val", val_samples or demo.VAL_SAMPLES)  # the same for all seeds
    return DataSource(
        make_images(torch.as_tensor(calib), None),
        make_images(torch.as_tensor(val_x), torch.as_tensor(val_y)),
        f"the embedded data set: {len(calib)} calibration and {len(val_x)} validation images",
    )
