"""Data of a run: what to calibrate on and what to measure on, from folders, arrays, the user's code, or embedded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwmodel.errors import InputError
from mpsearch.sources.arrays import from_arrays, open_npz
from mpsearch.sources.batches import (
    are_batches,
    calibration_batches,
    joined,
    split_at,
    validation_batches,
)
from mpsearch.sources.expected import normalization_text, shape_text
from mpsearch.sources.factory import call_factory, canonical, is_factory
from mpsearch.sources.folders import ClassNames, has_images, open_classes, open_folder
from mpsearch.sources.split import Normalization, Split
from mpsearch.sources.stored import USUAL, Stored, draw

MIN_CALIBRATION = 16  # below, the statistics of a layer's inputs are those of single samples
MIN_HELD_OUT, MOST_HELD_OUT = 16, 1024
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GUESSED_SIZE = (224, 224)
CALIBRATION, VALIDATION = ("calib", "train"), ("val", "valid", "validation", "test")


@dataclass(frozen=True, slots=True, eq=False)
class DataSource:
    """Samples to calibrate on (without targets), samples to measure on where there are any, and their origin in a line.

    `notes` are what a user should know: what was guessed, and what was done to the samples. `classes` says what labels
    are indices into, where they were read from folders.
    """

    calib: Split
    val: Split | None
    source: str
    notes: tuple[str, ...] = ()
    classes: ClassNames | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """Samples that are there, before any is drawn. Without `val`, a part of `calib` is held out."""

    calib: Stored
    val: Stored | None
    classes: ClassNames | None = None


def load_data(
    path: Path | str | None,
    *,
    input_size: tuple[int, ...] | None,
    normalization: Normalization | None,
    calib_samples: int,
    val_samples: int | None,
    seed: int,
    takes: int | None = None,
) -> DataSource:
    """Samples for a network that takes `input_size` (of images: channels, height, width; None: not known), drawn by
    `seed`. Calibration samples come in random order, and a smaller draw is the beginning of a larger one; validation
    samples keep their stored order.

    `path` is one of
    - a folder with `calib/` (or `train/`) and `val/` (or `valid/`, `test/`) of image files, where `val/` may have a
      folder for each class (see `open_classes`); or any folder of images;
    - a folder with `calib.npz` and `val.npz`, or one such file: `x`, and optionally targets `y` (see `from_arrays`);
    - `file.py:factory` or `package.module:factory`, returning two iterables of batches, `(calibration, validation)`
      (see `batches.py`; `takes` is the number of positional arguments of the network), or arrays
      `(calib_x, val_x, val_y)`. Validation may be None;
    - None: the embedded data set.
    Where there is nothing to measure on, a part is held out: a quarter, at least 16 and at most 1,024. Of one file with
    targets, `calib_samples` (half of them at most) are to calibrate on, the others to measure. Images are resized to
    the input's size (short side to 256/224 of it, the centre cropped) and stay uint8. Without `val_samples` all are
    measured on. Raises InputError where samples are missing, damaged, fewer than 16, or not what the network takes.
    """
    if calib_samples < MIN_CALIBRATION:
        raise InputError(f"at least {MIN_CALIBRATION} calibration images are needed, {calib_samples} were asked for")
    if val_samples is not None and val_samples < 1:
        raise InputError(f"at least 1 validation image is needed, {val_samples} were asked for")
    if path is None:
        return _load_demo(input_size, normalization, calib_samples, val_samples, seed)
    channels = _channels(input_size, normalization)
    if is_factory(str(path)) and not Path(path).exists():
        reference = canonical(str(path))
        made = _calibration_and_more(call_factory(reference), reference)
        if len(made) == 2:
            return _from_batches(*made, calib_samples, val_samples, takes, reference)
        calib = from_arrays(made[0], None, f"{reference} calib_x")
        val = None if made[1] is None else from_arrays(made[1], made[2], f"{reference} val_x, val_y")
        opened = Opened(calib, val)
    else:
        opened = _open(Path(path), channels or 3)
    size, normalization, notes = fitting(opened, path, input_size, channels, normalization)
    return drawn(opened, path, size, normalization, calib_samples, val_samples, seed, notes)


def _channels(input_size: tuple[int, ...] | None, normalization: Normalization | None) -> int | None:
    if input_size is not None:
        return input_size[0] if len(input_size) == 3 else None
    return None if normalization is None else len(normalization.mean)


def _open(path: Path, channels: int) -> Opened:
    if path.is_file() and path.suffix == ".npz":
        return Opened(open_npz(path), None)
    if not path.is_dir():
        raise InputError(f"no such data: {path}; expected a folder with calib/ and val/, .npz or file.py:factory")
    files = [path / f"{name}.npz" for name in CALIBRATION if (path / f"{name}.npz").is_file()]
    if files:
        others = [path / f"{name}.npz" for name in VALIDATION if (path / f"{name}.npz").is_file()]
        return Opened(open_npz(files[0]), open_npz(others[0]) if others else None)
    folders = [path / name for name in CALIBRATION if (path / name).is_dir()]
    if folders:
        others = [path / name for name in VALIDATION if (path / name).is_dir()]
        calib = open_folder(folders[0], channels)
        return Opened(calib, *open_classes(others[0], channels)) if others else Opened(calib, None)
    if not has_images(path):
        raise InputError(f"{path}: expected calib/ and val/, calib.npz and val.npz, or images; found neither")
    return Opened(open_folder(path, channels), None)


def _calibration_and_more(made: Any, reference: str) -> tuple[Any, ...]:
    """(calibration, validation) batches, or (calib_x, val_x, val_y) arrays, of what a factory returned."""
    if isinstance(made, tuple | list) and len(made) == 3:
        return tuple(made)
    if isinstance(made, tuple | list) and len(made) == 2:
        if isinstance(made[0], Tensor | np.ndarray):
            return made[0], made[1], None
        if are_batches(made[0]) and (made[1] is None or are_batches(made[1])):
            return tuple(made)
    elif are_batches(made) and not isinstance(made, tuple | list):
        return made, None
    raise InputError(
        f"{reference}: the factory must return (calibration, validation), two iterables of batches, or arrays "
        f"(calib_x, val_x, val_y); got a {type(made).__name__}"
    )


def _from_batches(
    calibration: Any, validation: Any, calib_samples: int, val_samples: int | None, takes: int | None, source: str
) -> DataSource:
    """Batches as they come; without `validation`, samples after those of calibration are held out."""
    spare = 0 if validation is not None else min(val_samples or MOST_HELD_OUT, max(MIN_HELD_OUT, calib_samples // 4))
    batches = calibration_batches(calibration, takes, f"{source} calibration")
    samples, targets = joined(batches, calib_samples + spare, f"{source} calibration")
    if len(samples) < MIN_CALIBRATION:
        raise InputError(f"{source}: at least {MIN_CALIBRATION} calibration samples are needed, got {len(samples)}")
    held = 0 if validation is not None else min(spare, held_out(len(samples)))
    calib, val = split_at(samples, targets, len(samples) - held if held else min(len(samples), calib_samples))
    held_text = " held out of the same" if held else ""
    if validation is not None:
        like = samples.spec
        measured = validation_batches(validation, like, f"{source} validation")
        val = Split.of(*joined(measured, val_samples, f"{source} validation"))
    return DataSource(calib, val, f"{source}: {len(calib)} calibration samples{_measured(val, held_text)}")


def from_memory(
    calibration: Any, validation: Any, calib_samples: int, val_samples: int | None, takes: int | None
) -> DataSource:
    """Samples for a network that `takes` so many positional arguments, from two iterables of batches, or from a tensor
    of samples each; see `batches.py`."""
    first, second = ([part] if isinstance(part, Tensor) else part for part in (calibration, validation))
    for part, what in ((first, "calibration"), (second, "validation")):
        if not are_batches(part) and (part is not None or what == "calibration"):
            seen = type(part).__name__
            raise InputError(f"{what} must be an iterable of batches, such as a DataLoader; got a {seen}")
    return _from_batches(first, second, calib_samples, val_samples, takes, "samples in memory")


def held_out(count: int) -> int:
    """How many of `count` samples are held out to measure on: a quarter, 16 at least and 1,024 at most, but so that 16
    are left."""
    return max(0, min(MOST_HELD_OUT, max(MIN_HELD_OUT, count // 4), count - MIN_CALIBRATION))


def _measured(val: Split | None, how: str) -> str:
    if val is None:
        return ", nothing to measure on"
    return f", {len(val)} validation samples{how}{'' if val.labelled else ', without labels'}"


def fitting(
    opened: Opened,
    path: Path | str,
    input_size: tuple[int, ...] | None,
    channels: int | None,
    normalization: Normalization | None,
) -> tuple[tuple[int, int] | None, Normalization | None, tuple[str, ...]]:
    """Size and normalisation of images, and notes on what was guessed. Raises InputError where the network takes
    something else."""
    calib = opened.calib
    for part in (calib, opened.val):
        if part is not None and (part.image is None) != (calib.image is None):
            raise InputError(f"{path}: samples to calibrate and to measure on must both be images, or neither")
    if calib.plain is not None:
        return None, None, _plain_notes(calib.plain, path, input_size)
    for part in (calib, opened.val):
        if part is not None and channels is not None and part.channels != channels:
            raise InputError(f"{path}: images have {part.channels} channels, but the network takes {channels}")
    if input_size is not None and len(input_size) != 3:
        raise InputError(f"{path}: these are images, but the network takes samples of {shape_text(input_size)}")
    notes = []
    size = calib.size if input_size is None else (input_size[1], input_size[2])
    if size is None:
        size = GUESSED_SIZE
        notes.append(
            f"warning: images of many sizes, and nothing says what the network takes: they are brought to "
            f"{shape_text(size)}; say it with --input, or as input_size in a JSON beside the model"
        )
    elif input_size is None:
        notes.append(f"images go in at their size, {calib.channels}x{shape_text(size)}: nothing says another")
    if normalization is None:
        normalization = (
            IMAGENET if calib.channels == 3 else Normalization((0.0,) * calib.channels, (1.0,) * calib.channels)
        )
        notes.append(
            f"warning: normalised by {normalization_text(normalization)}, which is a guess: say mean and std in a JSON "
            "beside the model"
        )
    if calib.size is not None and calib.size != size:
        scale = max(side * USUAL / have for side, have in zip(size, calib.size, strict=True))
        if scale > USUAL * 1.01:
            notes.append(f"warning: images of {shape_text(calib.size)} are enlarged to {shape_text(size)}")
    return size, normalization, tuple(notes)


def _plain_notes(x: Tensor, path: Path | str, input_size: tuple[int, ...] | None) -> tuple[str, ...]:
    shape = tuple(x.shape[1:])
    if input_size is None or shape == input_size or not x.is_floating_point():
        return ()
    if len(shape) != len(input_size) or shape[0] != input_size[0]:
        raise InputError(
            f"{path}: samples are {shape_text(shape) or 'numbers'}, but the network takes {shape_text(input_size)}"
        )
    return (f"warning: samples are {shape_text(shape)}, not {shape_text(input_size)} as was said: used as they are",)


def drawn(
    opened: Opened,
    path: Path | str,
    size: tuple[int, int] | None,
    normalization: Normalization | None,
    calib_samples: int,
    val_samples: int | None,
    seed: int,
    notes: tuple[str, ...],
) -> DataSource:
    calib, val, how = opened.calib, opened.val, ""
    if calib.count < MIN_CALIBRATION:
        raise InputError(f"{path}: at least {MIN_CALIBRATION} calibration {calib.noun} are needed, got {calib.count}")
    if val is None:
        order = draw(calib.count, seed)
        first = calib.count - held_out(calib.count)
        if calib.targets is not None:
            first = min(calib_samples, calib.count // 2)
        if first < calib.count:
            val, how = calib.part(np.sort(order[first:])), " held out of the same"
            calib = calib.part(np.sort(order[:first]))
    if calib.count < MIN_CALIBRATION:
        raise InputError(f"{path}: at least {MIN_CALIBRATION} calibration {calib.noun} are needed, got {calib.count}")
    calibration = calib.part(draw(calib.count, seed)[:calib_samples]).read(size, normalization, False)
    counts = f"{len(calibration)} of {calib.count} calibration {calib.noun}"
    if calib.count < calib_samples:
        counts += f" ({calib_samples} asked for)"
    validation = None
    if val is not None:
        chosen = np.sort(draw(val.count, seed)[: val_samples or val.count])
        validation = val.part(chosen).read(size, normalization, True)
        counts += f", {len(validation)} of {val.count} validation {val.noun}{how}"
        counts += "" if validation.labelled else ", without labels"
    return DataSource(calibration, validation, f"{path}: {counts}", notes, opened.classes)


def _load_demo(
    input_size: tuple[int, ...] | None,
    normalization: Normalization | None,
    calib_samples: int,
    val_samples: int | None,
    seed: int,
) -> DataSource:
    from mpsearch.sources import demo

    if input_size not in (None, demo.INPUT_SIZE):
        raise InputError(
            f"the embedded data set has {len(demo.CLASSES)} classes and images of {shape_text(demo.INPUT_SIZE)}, the "
            f"model takes {shape_text(input_size or ())}; give --data"
        )
    normalization = normalization or Normalization(demo.MEAN, demo.STD)
    calib, _ = demo.render("calib", calib_samples, seed)
    x, y = demo.render("val", val_samples or demo.VAL_SAMPLES)  # the same for all seeds
    return DataSource(
        Split.of(torch.as_tensor(calib), None, normalization),
        Split.of(torch.as_tensor(x), torch.as_tensor(y), normalization),
        f"the embedded data set: {len(calib)} calibration and {len(x)} validation images",
    )
