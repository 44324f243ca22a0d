"""Folders of image files, and the class that the folder of an image stands for.

Pixels are taken as the file stores them: a rotation that EXIF asks a viewer for is not applied, as in torchvision's
datasets, on which networks are trained.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hwmodel.errors import InputError
from mpsearch.sources.stored import Pixels, Stored

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # the latter where warnings are errors
_LOOKED_AT = 64  # images whose size is read to learn whether all have one
_DEEP = 4095  # a 16-bit image that is darker than this throughout holds 12 bits or fewer


@dataclass(frozen=True, slots=True)
class ClassNames:
    """What labels are indices into: `count` folders, or lines of a classes.txt where `listed`; and `where` they are."""

    count: int
    where: Path
    listed: bool

    def check(self, classes: int) -> None:
        """Raises InputError where a network tells another number of classes apart."""
        if self.count == classes:
            return
        if self.listed:
            raise InputError(f"{self.where} has {self.count} lines but the model {classes} classes; give as many")
        raise InputError(
            f"{self.where} has {self.count} class folders but the model {classes} classes; put a classes.txt with one "
            f"folder name per line, in the order of the model's classes, into {self.where.parent}"
        )


def has_images(folder: Path) -> bool:
    """Whether there are images anywhere under a folder."""
    return any(True for _ in _walk(folder))


def open_folder(folder: Path, channels: int = 3) -> Stored:
    """All images under a folder by ascending path, with 1, 3 or 4 channels. Raises InputError where there are none."""
    return _open(folder, image_files(folder), channels)


def open_classes(folder: Path, channels: int = 3) -> tuple[Stored, ClassNames | None]:
    """A folder with a folder for each class: its index is the folder's line in `classes.txt` beside the folder (from 0,
    the name is the line's first word), without that file its rank. Without labels, and None, where images lie in the
    folder itself. Raises InputError where there are no images, or the list does not fit."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names or any(entry.is_file() and entry.suffix.lower() in _SUFFIXES for entry in entries):
        return open_folder(folder, channels), None
    listing = folder.parent / "classes.txt"
    if listing.is_file():
        index, known = _listed(listing, names)
    else:
        index, known = {name: rank for rank, name in enumerate(names)}, ClassNames(len(names), folder, False)
    files = image_files(folder)
    labels = torch.tensor([index[file.relative_to(folder).parts[0]] for file in files], dtype=torch.int64)
    return _open(folder, files, channels, labels), known


def image_files(folder: Path) -> list[Path]:
    """All images under a folder by ascending path."""
    return sorted(_walk(folder), key=lambda file: file.parts)


def open_files(files: Sequence[Path], channels: int) -> Stored:
    """Images that were named one by one, with 1, 3 or 4 channels."""
    return Stored(len(files), None, lambda i: _decode(files[i], channels), None, channels)


def _open(folder: Path, files: Sequence[Path], channels: int, labels: torch.Tensor | None = None) -> Stored:
    if not files:
        raise InputError(f"{folder}: no images; expected files of {', '.join(sorted(_SUFFIXES))}")
    if channels not in _MODES:
        raise InputError(f"{folder}: image files have 1, 3 or 4 channels, the network takes {channels}; give a .npz")
    step = -(-len(files) // _LOOKED_AT)
    sizes = {image_size(file) for file in files[::step]}
    size = sizes.pop() if len(sizes) == 1 else None
    return Stored(len(files), labels, lambda i: _decode(files[i], channels), size, channels)


def _walk(folder: Path) -> list[Path]:
    files: list[Path] = []
    above = {os.fspath(folder): {os.path.realpath(folder)}}  # by folder, itself and those above it without links
    for parent, folders, names in os.walk(folder, followlinks=True):
        own = above.pop(parent)
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in folders}
        folders[:] = sorted(name for name in folders if not name.startswith(".") and real[name] not in own)
        above |= {os.path.join(parent, name): own | {real[name]} for name in folders}
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return [file for file in files if file.suffix.lower() in _SUFFIXES]


def _listed(listing: Path, names: list[str]) -> tuple[dict[str, int], ClassNames]:
    """The class index of each folder name, from `classes.txt`."""
    try:
        lines = [line.split() for line in listing.read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{listing} cannot be read ({error})") from error
    index = {words[0]: number for number, words in enumerate(lines) if words}
    if len(index) != len(lines):
        raise InputError(f"{listing}: {len(lines)} lines hold {len(index)} distinct names; each line must name a class")
    for name in names:
        if name not in index:
            raise InputError(f"{listing} does not list {name}, a folder of val/; add its line or remove the folder")
    return index, ClassNames(len(lines), listing, True)


def image_size(file: Path) -> tuple[int, int] | None:
    """Height and width by the head of a file; None where it cannot be read, which is said when it is decoded."""
    if not file.is_file():
        return None
    try:
        with Image.open(file) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, EOFError, *_BOMBS):
        return None


def _decode(file: Path, channels: int) -> Pixels:
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise InputError(f"image {file} is no file but a folder, a pipe or a device; replace or remove it")
    try:
        with Image.open(file) as image:
            return _pixels(image, channels)
    except InputError as error:
        raise InputError(f"image {file} {error}") from None
    except (OSError, ValueError, SyntaxError, EOFError, *_BOMBS) as error:
        raise InputError(f"image {file} cannot be read ({error}); replace or remove it") from error


def _pixels(image: Image.Image, channels: int) -> Pixels:
    """Pixels (h, w, channels). Raises InputError, without the file's name, where they are not in 8 or 16 bits."""
    if image.mode == "F":
        raise InputError("holds floating-point numbers of no known range; convert it to 8 bits, or give a .npz")
    if image.mode.startswith("I"):  # 16 bits, which Pillow's conversion would clip at 255
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise InputError(f"holds numbers from {deep.min()} to {deep.max()}; convert it to 8 or 16 bits")
        if 0 < deep.max() <= _DEEP:
            raise InputError(
                f"has 16 bits a pixel but nothing above {deep.max()}: are they 10 or 12 bits? Convert it to 8 bits"
            )
        return np.repeat((deep // 257).astype(np.uint8)[:, :, None], channels, axis=2)
    if image.mode == "P":
        image = image.convert("RGBA")
    depths = image.tag_v2.get(258, ()) if image.format == "TIFF" and hasattr(image, "tag_v2") else ()
    pixels = np.asarray(image.convert(_MODES[channels]))
    if max(depths, default=8) > 8 and pixels.max() <= _DEEP >> 8:
        raise InputError("has 16 bits a channel and is all but black: are they 10 or 12 bits? Convert it to 8 bits")
    return pixels if channels > 1 else pixels[:, :, None]
