"""What a check of an exported file has found, in lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def checked_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines for `Checked.to_json()`."""
    share = 100 * (found["size_bytes"] / found["packed_bytes"] - 1)
    yield f"{found['file']} in {found['runtime']}: {found['size_bytes']:,} bytes ({share:+.1f} % of the packed file)"
    float_, packed, exported = (found["metrics"][state] for state in ("float", "packed", "exported"))
    for name, value in exported.items():
        beside = f"packed file {packed[name]:.4f}, float {float_[name]:.4f}"
        yield f"{name}: {value:.4f} ({beside}), {found['samples']} samples"
    golden = found["agreement"]
    yield (
        f"golden plan, {golden['samples']} samples: {100 * golden['decisions']:.1f} % of decisions, "
        f"{100 * golden['identical']:.1f} % of outputs the same, error {100 * golden['error']:.2f} % of their spread"
    )
    if found["layers"] is not None:
        yield f"{found['integer_layers']} of {found['layers']} layers run as integer kernels"
    for threads, speed in found["speed"].items():
        one = speed["exported"]
        text = f"{one['median_ms']:.3f} ms ({one['lower_ms']:.3f} to {one['upper_ms']:.3f})"
        if "float" in speed:
            ratio = speed["float"]["median_ms"] / one["median_ms"]
            text += f", float {speed['float']['median_ms']:.3f} ms: {ratio:.2f} times as fast"
        yield f"{'one thread' if threads == '1' else 'all threads'}: {text}"
