"""Images to detect objects in: COCO's and YOLO's folders, brought to the input's size together with their boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hwmodel.errors import InputError
from mpsearch.sources.annotations import Annotated, Truth, listed_images, read_coco
from mpsearch.sources.data import CALIBRATION, VALIDATION, DataSource, Opened, drawn, fitting
from mpsearch.sources.folders import image_files, image_size, open_files
from mpsearch.sources.split import Normalization
from mpsearch.sources.stored import Pixels, Stored
from mpsearch.sources.yolo_folder import is_yolo, open_yolo

Fit = Literal["letterbox", "squash"]

STRIDE = 32  # images of one size go in as they are where it is a multiple of this: the coarsest map of most detectors
GREY = 114  # of the margin of a letterbox, as in YOLOX


@dataclass(frozen=True, slots=True)
class BoxOptions:
    """How images with boxes are read: from `annotations` (found in the folder if None), kept in proportion with a grey
    margin at the right or below (`letterbox`) or not (`squash`)."""

    annotations: Path | None = None
    fit: Fit = "letterbox"


def load_detection(
    path: Path,
    options: BoxOptions,
    *,
    input_size: tuple[int, ...] | None,
    given: bool,
    normalization: Normalization | None,
    any_size: bool,
    calib_samples: int,
    val_samples: int | None,
    seed: int,
) -> DataSource:
    """Images of a folder for a detector; targets are dicts as torchvision's detectors take them, in pixels of the
    input, with the ids of all `categories` (C,), of which `labels` are indices.

    The folder is in COCO's layout (`instances_val.json`, and images in `val/` or `images/`), in YOLO's (`data.yaml`),
    or has images alone, and then nothing is measured against boxes. Images to calibrate on are those in `calib/` or
    `train/`, or those that `instances_train.json` lists; what training annotations say is never read. Images of one
    size go in as they are where the network takes `any_size` or that is a multiple of 32, unless the input size was
    `given` by the user. Raises InputError where files are missing, damaged or do not fit each other.
    """
    if not path.is_dir():
        raise InputError(f"no such folder: {path}; expected images with COCO's or YOLO's annotations")
    calib, val, notes = _opened(path, options.annotations)
    files = [*calib, *(val.files if val is not None else ())]
    sizes = {size for size in map(image_size, files) if size is not None}
    size = (input_size[1], input_size[2]) if input_size is not None else None
    common = sizes.pop() if len(sizes) == 1 else None
    if common is not None and not given and (any_size or all(side % STRIDE == 0 for side in common)):
        if size not in (None, common):
            notes.append(f"images go in at their size, {common[0]}x{common[1]}; say --input 3xHxW for another")
        size = common
    channels = 3 if input_size is None else input_size[0]
    if size is not None:
        input_size = (channels, *size)
    wanted, normalization, more = fitting(
        Opened(Stored(len(files), None, lambda i: _unread(), size or common, channels), None),
        path,
        input_size,
        channels,
        normalization,
    )
    assert wanted is not None
    resize = _letterboxed if options.fit == "letterbox" else _squashed
    opened = Opened(_stored(calib, channels, wanted, resize), None)
    if val is not None:
        targets = [_target(val, at, wanted, options.fit) for at in range(len(val.files))]
        opened = Opened(opened.calib, _stored(val.files, channels, wanted, resize, targets))
    if not calib and val is not None:
        assert opened.val is not None
        opened = Opened(opened.val, None)
    return drawn(opened, path, wanted, normalization, calib_samples, val_samples, seed, (*notes, *more))


def _unread() -> Pixels:
    raise AssertionError("only the number and the size of these images count")


def _opened(path: Path, annotations: Path | None) -> tuple[tuple[Path, ...], Annotated | None, list[str]]:
    """Images to calibrate on, annotated ones to measure on, and notes."""
    if annotations is None and is_yolo(path) and _found(path, VALIDATION) is None:
        calib, val = open_yolo(path)
        return calib, val, list(val.notes) if val is not None else []
    of_val = annotations or _found(path, VALIDATION)
    val = None if of_val is None else read_coco(of_val, _folders(path, VALIDATION))
    notes = [] if val is None else list(val.notes)
    calib = _calibration(path, val)
    if val is None:
        notes.append(
            f"{path}: no annotations found (instances_val.json, data.yaml or --annotations): mAP is not measured"
        )
    elif (folder := val.files[0].parent).name != "images":
        known = set(val.files)
        others = sum(file not in known for file in image_files(folder))
        if others:
            notes.append(f"{others} images in {folder} have no annotations in {of_val}: they are left out")
    return calib, val, notes


def _found(path: Path, names: Sequence[str]) -> Path | None:
    """The annotations of a split. Raises InputError where there are several."""
    found: list[Path] = []
    for name in names:
        for folder in (path, path / "annotations"):
            found += sorted(folder.glob(f"instances_{name}*.json"))
        if (path / name / "_annotations.coco.json").is_file():
            found.append(path / name / "_annotations.coco.json")
    if len(found) > 1:
        raise InputError(f"{path} has several annotations ({', '.join(f.name for f in found)}); say --annotations FILE")
    return found[0] if found else None


def _folders(path: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Where images of a split may lie."""
    places = [path / name for name in names] + [path / "images" / name for name in names]
    places += sorted(place for name in names for place in path.glob(f"{name}20*"))
    return tuple(place for place in (*places, path / "images", path) if place.is_dir())


def _calibration(path: Path, val: Annotated | None) -> tuple[Path, ...]:
    """The images of calib/ or train/, else those that training annotations list, else all that are not to measure."""
    for folder in _folders(path, CALIBRATION):
        if folder not in (path, path / "images"):
            return tuple(image_files(folder))
    of_train = _found(path, CALIBRATION)
    if of_train is not None:
        return listed_images(of_train, _folders(path, CALIBRATION))
    known = set(val.files) if val is not None else set()
    return tuple(file for file in image_files(path) if file not in known)


def _stored(
    files: Sequence[Path],
    channels: int,
    size: tuple[int, int],
    resize: Callable[[Pixels, tuple[int, int]], Pixels],
    targets: list[dict[str, Tensor]] | None = None,
) -> Stored:
    plain = open_files(files, channels)
    image = plain.image
    assert image is not None
    return Stored(len(files), targets, lambda i: resize(image(i), size), size, channels)


def inner_size(have: tuple[int, int], size: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """(height, width) that an image takes of an input of `size`."""
    if fit == "squash":
        return size
    scale = min(size[0] / have[0], size[1] / have[1])
    return max(1, round(have[0] * scale)), max(1, round(have[1] * scale))


def _letterboxed(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    tall, wide = inner_size(pixels.shape[:2], size, "letterbox")
    inner = _squashed(pixels, (tall, wide))
    if (tall, wide) == size:
        return inner
    whole = np.full((*size, pixels.shape[2]), GREY, dtype=np.uint8)
    whole[:tall, :wide] = inner
    return whole


def _squashed(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if pixels.shape[:2] == size:
        return pixels
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR)).reshape(*size, pixels.shape[2])


def _target(val: Annotated, at: int, size: tuple[int, int], fit: Fit) -> dict[str, Tensor]:
    """The boxes of an image in pixels of the input."""
    truth: Truth = val.truths[at]
    have = image_size(val.files[at])
    if have is None:
        raise InputError(f"image {val.files[at]} cannot be read; replace or remove it")
    tall, wide = inner_size(have, size, fit)
    ids = torch.tensor(val.categories)
    return {
        "boxes": truth.boxes * torch.tensor([wide, tall, wide, tall], dtype=torch.float64),
        "labels": torch.searchsorted(ids, truth.categories),
        "area": truth.area,
        "iscrowd": truth.crowd,
        "categories": ids,
    }
