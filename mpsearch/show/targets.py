"""Targets as people read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from hwmodel.target import TargetSpec
from mpsearch.show.columns import columns


def targets_rows(targets: Sequence[TargetSpec]) -> Table:
    """The targets, one a line."""
    gone = ("activations", "weights", "format")
    view = columns("target", "weights", "activations", "format", "~what it is", first_to_go=gone)
    for target in targets:
        view.add_row(
            target.name,
            _bits(target.weight_bits),
            _bits(target.activation_bits),
            ", ".join(target.formats),
            target.title,
        )
    return view


def target_lines(target: TargetSpec) -> Iterator[str]:
    """One target: what it asks for, and where that is from."""
    yield f"{target.name}: {target.title}"
    yield f"weights of {_bits(target.weight_bits)} bits, activations of {_bits(target.activation_bits)}"
    yield (
        f"zero-point in the middle at {_bits(target.symmetric_bits)} bits"
        if target.symmetric_bits
        else "any zero-point"
    )
    if target.cuts_by_range:
        yield "steps behind ReLU6 such that the range of codes ends with it"
    yield f"a step for every channel of what depthwise layers read: {'yes' if target.channel_steps else 'no'}"
    yield f"mpsearch export --format {' or '.join(target.formats)}"
    yield f"source: {target.source}"


def _bits(bits: Sequence[int]) -> str:
    return ", ".join(map(str, bits))
