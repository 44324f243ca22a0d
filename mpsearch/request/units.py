"""Sizes, durations, energies and counts as people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal

from hwmodel.errors import InputError

_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SECONDS = {"ns": "1e-9", "us": "1e-6", "µs": "1e-6", "μs": "1e-6", "ms": "1e-3", "s": "1"}
_JOULES = {"nj": "1e-9", "uj": "1e-6", "µj": "1e-6", "μj": "1e-6", "mj": "1e-3", "j": "1"}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zµμ]*)\s*", re.IGNORECASE)


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
    return _above_zero(text, "a duration", "3ms", "s, ms, us, ns", _SECONDS)


def parse_energy(text: str) -> float:
    """Joules of `1mJ`; the unit is one of J, mJ, uJ, nJ. Raises InputError for anything else, and for zero."""
    return _above_zero(text, "an energy", "1mJ", "J, mJ, uJ, nJ", _JOULES)


def parse_operations(text: str) -> float:
    """Bit operations of `34G` or `34GBOPs` (MACs × weight bits × activation bits); k, M, G, T are powers of 1000.

    Raises InputError for anything else, and for zero.
    """
    expected = "a number of bit operations looks like 34G or 34GBOPs (k, M, G, T)"
    number, unit = _split(text, expected)
    factor = _COUNTS.get(unit.removesuffix("bops"))
    if factor is None or number == 0:
        raise InputError(f"{expected}; got {text!r}")
    return float(number * factor)


def parse_mean_bits(text: str) -> float:
    """Mean bits of a weight, `3.5`. Raises InputError for anything else, and for zero."""
    number, unit = _split(text, "mean bits look like 3.5")
    if unit not in ("", "bits") or number == 0:
        raise InputError(f"mean bits look like 3.5, got {text!r}")
    return float(number)


def _above_zero(text: str, what: str, example: str, units: str, factors: Mapping[str, str]) -> float:
    """The number of base units; `units` names those of `factors`. Raises InputError for another, and for zero."""
    number, unit = _split(text, f"{what} looks like {example} (units {units})")
    factor = factors.get(unit)
    if factor is None:
        raise InputError(f"{what} needs one of the units {units}; got {text!r}")
    if number == 0:
        raise InputError(f"{what} must be above zero, got {text!r}")
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


def format_number(value: float) -> str:
    """At most four significant digits, thousands set apart: `1,234`, `12.3`, `0.01234`."""
    if value == 0:
        return "0"
    digits = 3 - math.floor(math.log10(abs(value)))
    text = f"{round(value, digits):,.{max(digits, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_si(value: float, unit: str) -> str:
    """`3 ms`, `34.1 GBOPs`: the prefix that leaves at least 1, four significant digits."""
    prefixes = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
    scale, prefix = next(((s, p) for s, p in prefixes if value >= 0.99995 * s), prefixes[-1])
    return f"{format_number(value / scale)} {prefix}{unit}"
