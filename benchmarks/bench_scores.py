"""Sensitivity scores of large maps: seconds of the processor with and without copies of them, in turn.

    python benchmarks/bench_scores.py

A score is ⟨g, Δz⟩ by sample, beside it Σ g² Δz²: for every width one convolution and these sums. `before` is how
version 0.1.0 wrote them, six passes over memory with a new map in each; `now` is the code in use. One thread, process
time, 4 images, 9 widths, the layers of MobileNetV2; the smaller of two turns. Writes
benchmarks/results/bench_scores.json and the table of docs/performance.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from machine import machine

from mpsearch.run.summary import versions
from mpsearch.sensitivity.measure import sums_by_sample
from recon.compute.arithmetic import fast, keep_freed_memory

# Inputs, outputs, kernel, groups, side of the map.
LAYERS = (
    (16, 96, 1, 1, 112), (96, 96, 3, 96, 112), (24, 144, 1, 1, 56), (144, 24, 1, 1, 56), (144, 144, 3, 144, 56),
    (64, 384, 1, 1, 14), (384, 64, 1, 1, 14), (960, 320, 1, 1, 7),
)  # fmt: skip
SAMPLES, WIDTHS, TURNS = 4, 9, 2
RESULT, PAGE = ROOT / "benchmarks" / "results" / "bench_scores.json", ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- bench_scores: begin -->", "<!-- bench_scores: end -->"


def before(gradient: Tensor, z: Tensor) -> None:
    product = gradient.float() * z.float()
    for part in (product, product.square()):
        part.movedim(0, 0).reshape(SAMPLES, -1).sum(1)


def now(slope: Tensor, z: Tensor) -> None:
    sums_by_sample(z.float().mul_(slope), 0, SAMPLES)


def seconds(work: Callable[[], None]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


@torch.no_grad()
def measured(inputs: int, outputs: int, kernel: int, groups: int, side: int) -> dict[str, Any]:
    """Milliseconds of the convolutions alone, and of all, before and now."""
    x = torch.randn(SAMPLES, inputs, side, side).contiguous(memory_format=torch.channels_last)
    weights = torch.randn(WIDTHS, outputs, inputs // groups, kernel, kernel)
    gradient = torch.randn(SAMPLES, outputs, side, side).contiguous(memory_format=torch.channels_last)

    def convolved() -> list[Tensor]:
        with fast(torch.device("cpu")):
            return [F.conv2d(x.to(kind), weight, padding=kernel // 2, groups=groups) for weight in weights]

    with fast(torch.device("cpu")):
        kind = F.conv2d(x, weights[0], padding=kernel // 2, groups=groups).dtype
    gradient = gradient.to(kind)
    outputs_of = convolved()
    slope = gradient.float()
    ways = {
        "convolutions_ms": lambda: convolved(),
        "before_ms": lambda: [before(gradient, z) for z in outputs_of],
        "now_ms": lambda: [now(slope, z) for z in outputs_of],
    }
    turns = [{name: seconds(way) for name, way in ways.items()} for _ in range(1 + TURNS)][1:]
    found = {name: round(1000 * min(turn[name] for turn in turns), 1) for name in ways}
    return {"layer": f"{inputs} to {outputs}, {kernel} × {kernel}, {groups} groups, {side} × {side}", **found}


def table(rows: list[dict[str, Any]]) -> str:
    """The page's table."""
    lines = ["| layer | convolutions | sums before | sums now | all, now to before |", "|---|---|---|---|---|"]
    for r in rows:
        share = (r["convolutions_ms"] + r["now_ms"]) / (r["convolutions_ms"] + r["before_ms"])
        times = " | ".join(f"{r[name]:.1f} ms" for name in ("convolutions_ms", "before_ms", "now_ms"))
        lines.append(f"| {r['layer']} | {times} | {share:.2f} |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = [measured(*layer) for layer in LAYERS]
    result = {"machine": machine(), "versions": versions(), "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    head, rest = PAGE.read_text("utf-8").split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}", "utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
