"""Sizes and durations as people write them."""

from __future__ import annotations

import re
from decimal import Decimal

from hwmodel.errors import InputError

_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SECONDS = {"ns": "1e-9", "us": "1e-6", "µs": "1e-6", "μs": "1e-6", "ms": "1e-3", "s": "1"}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zµμ]*)\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Whole bytes of `1.5MB`, rounded down: kB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024, no unit is bytes.

    Raises InputError for anything else, and for less than one byte.
    """
    number, unit = _split(text, "a size looks like 1.5MB, 1.4MiB or 1500000 (units B, kB, MB, GB, KiB, MiB, GiB)")
    factor = _BYTES.get(unit or "b")
    if factor is None:
        raise InputError(f"a size has one of the units B, kB, MB, GB, KiB, MiB, GiB; got {text!r}")
    if number * factor < 1:
        raise InputError(f"a size must be at least one byte, got {text!r}")
    return int(number * factor)


def parse_duration(text: str) -> float:
    """Seconds of `3ms`; the unit is one of s, ms, us, ns. Raises InputError for anything else, and for zero."""
    number, unit = _split(text, "a duration looks like 3ms (units s, ms, us, ns)")
    factor = _SECONDS.get(unit)
    if factor is None:
        raise InputError(f"a duration needs one of the units s, ms, us, ns; got {text!r}")
    if number == 0:
        raise InputError(f"a duration must be above zero, got {text!r}")
    return float(number * Decimal(factor))


def _split(text: str, expected: str) -> tuple[Decimal, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InputError(f"{expected}; got {text!r}")
    return Decimal(match[1]), match[2].lower()


def format_bytes(count: float) -> str:
    """`1.50 MB`: the largest of B, kB, MB, GB (powers of 1000) that leaves at least 1, three significant digits."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= 0.9995 * factor:
            return f"{count / factor:#.3g}".rstrip(".") + f" {unit}"
    return f"{count:.0f} B"
