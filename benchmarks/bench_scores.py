"""The two parts of sensitivity that every width asks for: seconds of the processor one by one and at once, in turn.

    python benchmarks/bench_scores.py

Scores ⟨g, Δ⟩ of 4 images at 6 widths: from the error of the outputs at every width, or from one gradient by the weight.
Second-order rounding at 6 widths: one after another, or at once. One thread, process time, the layers of MobileNetV2
with random weights and inputs; the smaller of two turns. Writes benchmarks/results/bench_scores.json and the table of
docs/performance.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from machine import machine, seconds
from pages import put

from hwmodel import Precision
from mpsearch.run.summary import versions
from mpsearch.sensitivity.terms import score_by_outputs, score_by_weight
from recon.compute.arithmetic import fast_dtype, keep_freed_memory
from recon.fit.start import second_order_rounding, second_order_roundings
from recon.graph.layers import Convolution
from recon.statistics.moments import InputMoments

# Inputs, outputs, kernel, groups, side of the map.
LAYERS = (
    (16, 96, 1, 1, 112), (96, 96, 3, 96, 112), (24, 144, 1, 1, 56), (144, 24, 1, 1, 56), (144, 144, 3, 144, 56),
    (64, 384, 1, 1, 14), (384, 64, 1, 1, 14), (160, 960, 1, 1, 7),
)  # fmt: skip
SAMPLES, WIDTHS, TURNS, PATCHES = 4, (2, 3, 4, 5, 6, 8), 2, 4096
RESULT, PAGE = ROOT / "benchmarks" / "results" / "bench_scores.json", ROOT / "docs" / "performance.md"


@torch.no_grad()
def measured(inputs: int, outputs: int, kernel: int, groups: int, side: int) -> dict[str, Any]:
    """Milliseconds of a layer's scores and of its roundings, both ways."""
    ones, pads, kind = (1, 1), (kernel // 2,) * 2, fast_dtype(torch.device("cpu"))
    layer = Convolution(
        torch.randn(outputs, inputs // groups, kernel, kernel), torch.zeros(outputs), ones, pads, ones, groups
    )
    x = torch.randn(SAMPLES, inputs, side, side).to(kind, memory_format=torch.channels_last)
    gradient = torch.randn(SAMPLES, outputs, side, side).to(kind, memory_format=torch.channels_last)
    errors = [(torch.randn_like(layer.weight) * 2.0**-width, torch.zeros(outputs)) for width in WIDTHS]
    length, precisions = layer.weight[0].numel(), [Precision(width) for width in WIDTHS]
    moments = InputMoments()
    moments.add(torch.randn(groups, length, PATCHES), None, None)
    pull = torch.randn(outputs, 2 * outputs)
    metric = pull @ pull.T / outputs if groups == 1 else None
    ways: dict[str, Callable[[], object]] = {
        "by_outputs_ms": lambda: [*score_by_outputs(layer, errors, x, gradient, 0, SAMPLES)],
        "by_weight_ms": lambda: score_by_weight(layer, errors, x, gradient, 0, SAMPLES),
        "one_by_one_ms": lambda: [
            second_order_rounding(layer.weight, one, moments, metric=metric) for one in precisions
        ],
        "at_once_ms": lambda: second_order_roundings(layer.weight, precisions, moments, metric=metric),
    }
    turns = [{name: seconds(way) for name, way in ways.items()} for _ in range(1 + TURNS)][1:]
    found = {name: round(1000 * min(turn[name] for turn in turns), 1) for name in ways}
    return {"layer": f"{inputs} to {outputs}, {kernel} × {kernel}, {groups} groups, {side} × {side}", **found}


def table(rows: list[dict[str, Any]]) -> str:
    """The page's table."""
    lines = [
        "| layer | scores from outputs | from the weight | roundings one by one | at once |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        times = " | ".join(
            f"{r[name]:.1f} ms" for name in ("by_outputs_ms", "by_weight_ms", "one_by_one_ms", "at_once_ms")
        )
        lines.append(f"| {r['layer']} | {times} |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = [measured(*layer) for layer in LAYERS]
    result = {"machine": machine(), "versions": versions(), "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    put(PAGE, "bench_scores", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
