"""JSON that somebody may have edited or sent: what Python reads of it beyond the standard, or chokes on, is refused."""

from __future__ import annotations

import json
import math
from typing import Any

MOST_DIGITS = 40  # of an integer; 128 bits have 39


def parse_json(text: str | bytes, *, not_finite: bool = False) -> Any:
    """What a JSON text holds. Raises ValueError, in one line, for what is no JSON, for brackets too deep, for numbers
    beyond double precision and, unless `not_finite` is allowed, for NaN and Infinity."""
    try:
        return json.loads(
            text,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=float if not_finite else _refused,
        )
    except RecursionError:
        raise ValueError("brackets within brackets, too deep") from None


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:MOST_DIGITS]} is beyond double precision")
    return value


def _refused(name: str) -> float:
    raise ValueError(f"{name} where a number is expected")
