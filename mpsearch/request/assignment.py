"""Bit assignments as people give them: one precision for all layers, or a JSON file of bits by layer."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from hwmodel import FLOAT_BITS, BitConfig, InputError, Precision


def parse_precision(text: str) -> Precision:
    """Reads `4`, `W4` or, entropy-coded, `R2.5`, with float activations, or `W4A8`, `R2.5A8`. Raises InputError for
    anything else."""
    weights = text.removeprefix("W")
    try:
        if text[:1] in ("R", "r") and "A" not in text.upper():
            return Precision.parse(f"{text}A{FLOAT_BITS}")
        return Precision(int(weights)) if weights.isdecimal() else Precision.parse(text)
    except InputError as error:
        raise InputError(f"--bits takes 4, W4, W4A8, R2.5 or a .json file of bits by layer: {error}") from None


def uniform(layers: tuple[str, ...], precision: Precision, edges: Collection[str], edge: Precision) -> BitConfig:
    """`precision` in all layers but `edges`, which have `edge`."""
    return BitConfig(layers, tuple(edge if name in edges else precision for name in layers))


def read_assignment(path: Path, layers: tuple[str, ...]) -> BitConfig:
    """What a JSON file says: `"W4A8"` or `4` for every layer, or an export with one configuration.

    Raises InputError for anything else.
    """
    if not path.is_file():
        raise InputError(f"no such file of bits: {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        while isinstance(data, dict) and len(data) == 1 and isinstance(next(iter(data.values())), dict):
            data = next(iter(data.values()))
        bits = {name: Precision(p) if isinstance(p, int) else Precision.parse(p) for name, p in dict(data).items()}
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no bit assignment ({error}); mpsearch export writes one") from None
    odd = sorted(set(layers) ^ set(bits))
    if odd:
        raise InputError(f"{path} is of another network: it has {len(bits)} layers for {len(layers)}, see {odd[0]!r}")
    return BitConfig(layers, tuple(bits[name] for name in layers))
