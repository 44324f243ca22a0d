"""Folders in YOLO's layout: images, a text file of boxes for each, and a data.yaml that names folders and classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwmodel.errors import InputError
from mpsearch.sources.annotations import Annotated, Truth, truth_of
from mpsearch.sources.folders import image_files

DATA = "data.yaml"
_TRAIN, _VAL = ("train",), ("val", "valid", "test")


def is_yolo(folder: Path) -> bool:
    """Whether a folder has a data.yaml, or images/ beside labels/."""
    return (folder / DATA).is_file() or ((folder / "images").is_dir() and (folder / "labels").is_dir())


def open_yolo(folder: Path) -> tuple[tuple[Path, ...], Annotated | None]:
    """The images to calibrate on, whose labels are not read, and those to measure on with their boxes, where there are
    any. Raises InputError where data.yaml or a label file is damaged, or a folder is missing."""
    said = _read(folder / DATA) if (folder / DATA).is_file() else {}
    root = folder / str(said.get("path") or "")
    if not root.is_dir():
        root = folder
    calib = _images(folder, root, said, _TRAIN)
    val = _images(folder, root, said, _VAL)
    if not val:
        return calib, None
    classes = _classes(folder / DATA, said)
    truths, bare, left_out = [], 0, 0
    for file in val:
        label = _label_file(file)
        truth, dropped = _truth(label, classes) if label.is_file() else (truth_of([], [], [], []), 0)
        bare += not label.is_file()
        left_out += dropped
        truths.append(truth)
    if bare == len(val):
        raise InputError(
            f"{folder}: none of {len(val)} validation images has a label file, such as {_label_file(val[0])}"
        )
    notes = [f"{bare} of {len(val)} validation images have no label file: nothing is in them"] if bare else []
    notes += [f"{left_out} boxes of no size or outside their image are left out"] if left_out else []
    count = classes or 1 + max(int(one.categories.max()) for one in truths if len(one.categories))
    return calib, Annotated(val, tuple(truths), tuple(range(count)), tuple(notes))


def _read(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); expected train, val and names"
        ) from None
    if not isinstance(said, dict):
        raise InputError(f"{path} must hold train, val and names, got a {type(said).__name__}")
    return said


def _images(folder: Path, root: Path, said: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Path, ...]:
    """The images of a split: where data.yaml says they are, or in images/NAME or NAME/images."""
    for name in names:
        given = said.get(name)
        places = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        if places:
            return tuple(file for place in places for file in _listed(folder, root, str(place)))
        for place in (root / "images" / name, root / name / "images"):
            if place.is_dir():
                return tuple(image_files(place))
    return ()


def _listed(folder: Path, root: Path, place: str) -> list[Path]:
    """The images in a folder, or in a text file of paths, that data.yaml names."""
    tried = [root / place, folder / place, folder / place.removeprefix("../")]  # exporters leave ../ behind
    for path in tried:
        if path.is_dir():
            return image_files(path)
        if path.is_file():
            lines = path.read_text(encoding="utf-8").split("\n")
            return [path.parent / line.strip() for line in lines if line.strip()]
    raise InputError(f"{folder / DATA} names {place}, but there is no {tried[0]}; mend it or move the images there")


def _classes(path: Path, said: Mapping[str, Any]) -> int | None:
    names = said.get("names", said.get("nc"))
    if isinstance(names, list | dict):
        return len(names)
    if names is None or isinstance(names, int):
        return names
    raise InputError(f"{path}: names must be a list of classes, got {names!r}")


def _label_file(image: Path) -> Path:
    """…/labels/NAME.txt for …/images/NAME.jpg."""
    parts = list(image.parts)
    at = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if at:
        parts[at[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _truth(path: Path, classes: int | None) -> tuple[Truth, int]:
    """The boxes of a label file, lines of class, centre and size, or class and a polygon, in shares of the image; and
    how many are left out as they have no size or lie outside."""
    boxes: list[list[float]] = []
    labels: list[int] = []
    left_out = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            label, values = int(float(words[0])), [float(word) for word in words[1:]]
        except ValueError:
            label, values = -1, []
        if len(values) < 4 or (len(values) > 4 and len(values) % 2) or not 0 <= label < (classes or label + 1):
            known = "" if classes is None else f", with a class below {classes}"
            raise InputError(f"{path}, line {number}: expected class x y width height{known}, got {line.strip()!r}")
        if len(values) == 4:
            x, y, width, height = values
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        else:
            box = [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
        if box[0] >= box[2] or box[1] >= box[3] or min(box[:2]) >= 1 or max(box[2:]) <= 0:
            left_out += 1
            continue
        boxes.append(box)
        labels.append(label)
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in boxes]
    return truth_of(boxes, labels, [False] * len(boxes), area), left_out
