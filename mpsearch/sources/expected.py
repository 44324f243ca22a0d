"""What a model takes: its input size and its normalisation, as files beside the code and the weights say it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwmodel.errors import InputError
from hwmodel.json_text import parse_json
from mpsearch.sources.split import Normalization

MOST_DIMENSIONS = 4
Known = Mapping[str, tuple[float, ...]]  # input_size, mean, std, channels: those that a place says something of
ORDERS = {"RGB": (0.0, 1.0, 2.0), "BGR": (2.0, 1.0, 0.0)}  # of channels, which a text begins with


@dataclass(frozen=True, slots=True)
class Expected:
    """The shape of one sample, for images (channels, height, width), and the normalisation; None where nothing is said.

    `note` says in a line what is known, and from where; "" where nothing is.
    """

    size: tuple[int, ...] | None
    normalization: Normalization | None
    note: str


def beside(path: Path | None) -> Known:
    """What the JSON beside a file (same stem) says. Raises InputError where it cannot be read or says nonsense."""
    path = None if path is None else path.with_suffix(".json")
    if path is None or not path.is_file():
        return {}
    try:
        known = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no readable JSON file ({error}); mend or remove it") from error
    if not isinstance(known, dict):
        raise InputError(f"{path} must hold an object with input_size, mean and std; got a {type(known).__name__}")
    found = {key: _numbers(path, key, known[key]) for key in ("input_size", "mean", "std") if key in known}
    order = ORDERS.get(str(known.get("channels"))[:3])
    if order is not None:
        found["channels"] = order
    size = found.get("input_size", (1,))
    if len(size) > MOST_DIMENSIONS or any(value < 1 or value != int(value) for value in size):
        raise InputError(
            f"{path}: input_size must be the shape of one sample, such as [3, 224, 224], got {known['input_size']}"
        )
    if min(found.get("std", (1.0,))) <= 0:
        raise InputError(f"{path}: std must be above zero, got {known['std']}")
    return found


def expected(*places: tuple[str, Known]) -> Expected:
    """What places, from the weakest to the strongest, say together: the last that says a thing is right about it.

    A mean and std for another number of channels than a stronger place gives do not hold. Raises InputError where one
    place contradicts itself, or there is a mean without a std.
    """
    known: dict[str, tuple[float, ...]] = {}
    where: dict[str, str] = {}
    rank: dict[str, int] = {}
    for index, (place, said) in enumerate(places):
        for key, values in said.items():
            known[key], where[key], rank[key] = values, place, index
    size = tuple(int(value) for value in known["input_size"]) if "input_size" in known else None
    for key in ("mean", "std"):
        if key in known and size is not None and len(size) == 3 and len(known[key]) != size[0]:
            if rank[key] >= rank["input_size"]:
                raise InputError(
                    f"{where[key]}: {key} must be {size[0]} numbers, one for each channel of input_size, "
                    f"got {list(known[key])}"
                )
            del known[key]
    if ("mean" in known) != ("std" in known):
        there, missing = ("mean", "std") if "mean" in known else ("std", "mean")
        raise InputError(f"{where[there]} says {there} but nothing says {missing}; give both")
    if "mean" not in known:
        return Expected(size, None, _note([("input", shape_text(size), where["input_size"])] if size else []))
    if len(known["mean"]) != len(known["std"]):
        raise InputError(f"{where['std']}: mean and std must be as long, got {known['mean']} and {known['std']}")
    parts = [(key, _text(known[key]), where[key]) for key in ("mean", "std")]
    if size is not None:
        parts.insert(0, ("input", shape_text(size), where["input_size"]))
    bgr = known.get("channels") == ORDERS["BGR"] and len(known["mean"]) == 3
    if bgr:
        parts.append(("channels", "BGR", where["channels"]))
    return Expected(size, Normalization(known["mean"], known["std"], bgr), _note(parts))


def shape_text(shape: tuple[int, ...]) -> str:
    """3x224x224."""
    return "x".join(map(str, shape))


def normalization_text(normalization: Normalization) -> str:
    """Mean and std in words."""
    return f"mean {_text(normalization.mean)}, std {_text(normalization.std)}"


def _text(values: tuple[float, ...]) -> str:
    shown = [f"{value:g}" for value in values]
    return f"{shown[0]} in all {len(shown)} channels" if len(shown) > 4 and len(set(shown)) == 1 else " ".join(shown)


def _note(parts: list[tuple[str, str, str]]) -> str:
    """The line of things known: each with its place, or the place once where it is the same."""
    places = list(dict.fromkeys(place for _, _, place in parts))
    if len(places) == 1:
        return f"{', '.join(f'{name} {text}' for name, text, _ in parts)}: from {places[0]}"
    return ", ".join(f"{name} {text} (from {place})" for name, text, place in parts)


def _numbers(path: Path, key: str, values: Any) -> tuple[float, ...]:
    if (
        not isinstance(values, list)
        or not values
        or not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    ):
        raise InputError(f"{path}: {key} must be a list of numbers, got {json.dumps(values)}")
    return tuple(map(float, values))
