"""Annotated images: what boxes COCO's JSON (Lin et al., ECCV 2014) says that images hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from hwmodel.errors import InputError
from hwmodel.json_text import parse_json

MOST = 2**63 - 1  # of an id: torch has 64 bits


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The boxes of one image, x1 y1 x2 y2 as shares of its width and height (M, 4), with the ids of their categories
    (M,), their areas in pixels (M,) and whether each is a crowd, or too difficult, to count (M,)."""

    boxes: Tensor
    categories: Tensor
    area: Tensor
    crowd: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Annotated:
    """Image files and what is in them; `categories` are the ids that there are, ascending. `notes` are what a user
    should know."""

    files: tuple[Path, ...]
    truths: tuple[Truth, ...]
    categories: tuple[int, ...]
    notes: tuple[str, ...] = ()


def truth_of(boxes: list[list[float]], categories: list[int], crowd: list[bool], area: list[float]) -> Truth:
    """A record from plain numbers, one row for each box."""
    return Truth(
        torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        torch.tensor(categories, dtype=torch.int64),
        torch.tensor(area, dtype=torch.float64),
        torch.tensor(crowd, dtype=torch.int64),
    )


def listed_images(path: Path, folders: tuple[Path, ...]) -> tuple[Path, ...]:
    """The image files that a COCO JSON lists, by its order; what it says of them is not read."""
    images = _records(path, _read(path), "images")
    where = _folder_of(path, images, folders)
    return tuple(where / _name(path, image) for image in images)


def read_coco(path: Path, folders: tuple[Path, ...]) -> Annotated:
    """The images of a COCO JSON, in one of `folders`, and their boxes.

    Boxes of no size, or outside their image, are left out and noted. Those with `iscrowd`, `ignore` or `difficult`
    count neither way. Raises InputError where the file is damaged, or images that it lists are missing.
    """
    data = _read(path)
    images, boxes = _records(path, data, "images"), _records(path, data, "annotations")
    categories = _by_id(path, _records(path, data, "categories"), "categories")
    if not categories:
        raise InputError(f"{path} names no categories: expected COCO's images, annotations and categories")
    where = _folder_of(path, images, folders)
    frames = _by_id(path, images, "images")
    files = {number: where / _name(path, image) for number, image in frames.items()}
    missing = [file for file in files.values() if not file.is_file()]
    if missing:
        raise InputError(
            f"{path} lists {len(files)} images, {len(missing)} of which are not in {where} (first: {missing[0].name}); "
            "add them, or name other annotations with --annotations"
        )
    rows: dict[int, list[tuple[list[float], int, bool, float]]] = {image: [] for image in files}
    left_out = 0
    for one in boxes:
        image, category = _number(path, one, "image_id"), _number(path, one, "category_id")
        if image not in rows or category not in categories:
            what, value = ("image", image) if image not in rows else ("category", category)
            raise InputError(f"{path}: annotation {one.get('id')} is of {what} {value}, which the file does not list")
        wide, tall = (_side(path, frames[image], name) for name in ("width", "height"))
        left, top, width, height = _box(path, one)
        if width <= 0 or height <= 0 or left >= wide or top >= tall or left + width <= 0 or top + height <= 0:
            left_out += 1
            continue
        box = [left / wide, top / tall, (left + width) / wide, (top + height) / tall]
        crowd = any(bool(one.get(key)) for key in ("iscrowd", "ignore", "difficult"))
        rows[image].append((box, category, crowd, _area(path, one, width * height)))
    truths = []
    for found in rows.values():
        columns = tuple(zip(*found, strict=True)) or ((), (), (), ())
        truths.append(truth_of(*map(list, columns)))
    notes = [f"{path.name}: {left_out} boxes of no size or outside their image are left out"] if left_out else []
    return Annotated(tuple(files.values()), tuple(truths), tuple(sorted(categories)), tuple(notes))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"annotations {path} cannot be read ({error}); expected COCO's JSON") from None
    if not isinstance(data, dict) or "images" not in data:
        raise InputError(f"{path} holds no images: expected COCO's JSON with images, annotations and categories")
    return data


def _records(path: Path, data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = data.get(key)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InputError(f"{path}: {key} must be a list of objects, got {type(found).__name__}; expected COCO's JSON")
    return found


def _folder_of(path: Path, images: list[Mapping[str, Any]], folders: tuple[Path, ...]) -> Path:
    """The folder in which the first image of a file lies that is there."""
    if not images:
        raise InputError(f"{path} lists no images")
    for folder in folders:
        if any((folder / _name(path, image)).is_file() for image in images):
            return folder
    tried = ", ".join(str(folder) for folder in folders)
    raise InputError(
        f"{path} lists {len(images)} images, none of which is in {tried} (first: {images[0].get('file_name')})"
    )


def _name(path: Path, image: Mapping[str, Any]) -> str:
    """The file of an image, which lies in the folder that was given: a JSON from elsewhere opens no other."""
    name = image.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"{path}: image {image.get('id')} needs its file_name, got {name!r}")
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise InputError(f"{path}: file_name {name!r} leads out of the folder of images; name files inside it")
    return name


def _by_id(path: Path, records: list[Mapping[str, Any]], what: str) -> dict[int, Mapping[str, Any]]:
    found = {_number(path, one, "id"): one for one in records}
    if len(found) != len(records):
        ids = [one["id"] for one in records]
        twice = next(number for number in found if ids.count(number) > 1)
        raise InputError(f"{path}: {what} must have ids of their own, got {twice} {ids.count(twice)} times")
    return found


def _number(path: Path, one: Mapping[str, Any], key: str) -> int:
    value = one.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MOST:
        raise InputError(f"{path}: {key} must be a whole number, got {value!r}")
    return value


def _area(path: Path, one: Mapping[str, Any], known: float) -> float:
    value = one.get("area", known)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{path}: annotation {one.get('id')} needs its area in pixels, got {value!r}")
    return float(value)


def _side(path: Path, image: Mapping[str, Any], key: str) -> float:
    value = image.get(key)
    if not isinstance(value, int | float) or not value > 0:
        raise InputError(f"{path}: image {image.get('id')} needs its {key} in pixels, got {value!r}")
    return float(value)


def _box(path: Path, one: Mapping[str, Any]) -> tuple[float, float, float, float]:
    box = one.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise InputError(f"{path}: annotation {one.get('id')} needs bbox [x, y, width, height], got {box!r}")
    left, top, width, height = map(float, box)
    return left, top, width, height
