"""Damaged and edited versions of files, each with a word that says what was done."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

GARBAGE = (
    b"", b"\0" * 64, b"\xff\xfe" * 50, b"null", b"[]", b"{}", b"3", b'"text"', b"[" * 20000, b'{"a":' * 5000,
    b"1" * 400, b"<html>not found</html>", b'{"key": 1e999}', b"PK\x03\x04", b"version https://git-lfs.github.com/spec",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, -1, 0, 10**30, 10**400, 1e300, float("nan"), float("inf"), "", "x", "W4A8", [], [1], {}, {"a": 1}, True,
    "\x1b[31m\n", "‮",
)  # fmt: skip


def truncated(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Cut off at the beginning, in the middle, and before the end."""
    for at in (1, 7, 8, 9, len(data) // 3, len(data) // 2, len(data) - 2):
        if 0 < at < len(data):
            yield f"cut at {at}", data[:at]


def garbage() -> Iterator[tuple[str, bytes]]:
    """Something else altogether."""
    for index, data in enumerate(GARBAGE):
        yield f"garbage {index}", data


def edited(text: str, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` times a JSON text with one value, or one whole part, replaced, removed or doubled, drawn by `seed`."""
    draw = random.Random(seed)
    for _ in range(count):
        data = json.loads(text)
        where = _places(data)
        parent, key = where[draw.randrange(len(where))]
        value = VALUES[draw.randrange(len(VALUES))]
        what = draw.choice(("replaced", "replaced", "replaced", "removed", "doubled"))
        if what == "replaced":
            parent[key] = value
        elif what == "removed":
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, parent[key])
        else:
            parent[f"{key}2"] = parent[key]
        yield f"{what} {key!r} by {str(value)[:20]!r}", _dumps(data)


def _dumps(data: Any) -> bytes:
    text = json.dumps(data.copy() if isinstance(data, dict) else data, default=str)
    return text.encode()


def _places(data: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(pairs):
        found.append((data, key))
        found += _places(value)
    return found


def flipped(data: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` times a few bytes replaced, drawn by `seed`, more of them in the first kilobyte."""
    draw = random.Random(seed)
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 3, 20))):
            most = min(len(data), 1024) if draw.random() < 0.6 else len(data)
            changed[draw.randrange(most)] = draw.randrange(256)
        yield "bytes replaced", bytes(changed)
