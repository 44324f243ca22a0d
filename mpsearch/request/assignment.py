"""Bit assignments as people give them: one precision for all layers, or a JSON file of bits by layer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwmodel import FLOAT_BITS, BitConfig, InputError, Precision
from hwmodel.json_text import parse_json
from mpsearch.request.foreign import ForeignBits, read_foreign
from mpsearch.request.names import Matches, match

NAMED = 4  # layers in a message


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


@dataclass(frozen=True, slots=True)
class Assignment:
    """A bit assignment from a file, and in a line what is worth knowing of how it was read; empty where nothing is."""

    config: BitConfig
    note: str


def read_assignment(path: Path, layers: tuple[str, ...]) -> Assignment:
    """What a JSON file says of `layers`: an export of ours, bits by layer, or what HAWQ, MCT, AIMET or NNCF assigned.

    Layers of other tools are found by their names, see `match`; where a file that is in order names none of them but as
    many, by their order. Raises InputError for anything else, and where a layer is not found.
    """
    if not path.is_file():
        raise InputError(f"no such file of bits: {path}")
    try:
        given = read_foreign(parse_json(path.read_bytes()))
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no bit assignment ({error}); mpsearch export writes one") from None
    matches = match(layers, tuple(given.bits))
    if not matches.found and given.in_order and len(given.bits) == len(layers):
        matches = Matches(dict(zip(layers, given.bits, strict=True)), (), ())
        return _assigned(path, layers, given, matches, "no name is that of a layer: taken in their order, please check")
    if not matches.found or (matches.missing and given.default is None):
        raise InputError(
            f"{path} names {len(matches.found)} of {len(layers)} layers: nothing for {_few(matches.missing)}; "
            f"{_few(matches.left) or 'nothing'} in it is left: is it of another network?"
        )
    first = next(iter(matches.renamed), "")
    similar = (
        f"layers by similar names: {len(matches.renamed)}, such as {matches.found[first]} for {first}" if first else ""
    )
    return _assigned(path, layers, given, matches, similar)


def _assigned(path: Path, layers: tuple[str, ...], given: ForeignBits, matches: Matches, how: str) -> Assignment:
    """The bits by layer, and `how` they were found with all else that is worth knowing."""
    bits = (given.bits[matches.found[layer]] if layer in matches.found else given.default for layer in layers)
    config = BitConfig(layers, tuple(precision for precision in bits if precision is not None))
    parts = [how] if how else []
    if matches.missing:
        parts.append(f"{given.default} for what it does not name: {_few(matches.missing)}")
    if matches.left:
        parts.append(f"no layer is called {_few(matches.left)}")
    if given.left_out:
        parts.append(f"entries about other tensors: {given.left_out}")
    if given.tool != "plain" and all(precision.a == FLOAT_BITS for precision in given.bits.values()):
        parts.append("inputs stay float")
    tool = "" if given.tool == "plain" else f" ({given.tool})"
    return Assignment(config, f"{path.name}{tool}: {'; '.join(parts)}" if parts else "")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more
