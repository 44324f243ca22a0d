"""What sensitivity and finalization cost against layers, images and widths: processor seconds, one of the three doubled
at a time.

    python benchmarks/bench_growth.py

Plain networks of equal 3 × 3 convolutions with random weights on noise of 32 × 32 pixels, one thread. Linear is × 2 for
each doubling, less where a part is fixed. Writes benchmarks/results/bench_growth.json and the table of
docs/performance.md.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from machine import machine, seconds
from pages import put

from hwmodel import BitConfig, Precision
from mpsearch.run.summary import versions
from mpsearch.sensitivity.measure import measure
from recon.compute.arithmetic import keep_freed_memory
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.reconstruct import reconstruct

CHANNELS, SIDE = 32, 32
LAYERS, IMAGES, WIDTHS = (4, 8, 16), (64, 128, 256), (1, 2, 4)
RESULT, PAGE = ROOT / "benchmarks" / "results" / "bench_growth.json", ROOT / "docs" / "performance.md"


def network(layers: int) -> Network:
    """So many convolutions, each behind the one before, and a classifier."""
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU()]
    for _ in range(layers):
        parts += [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return capture(model, torch.randn(4, 3, SIDE, SIDE), f"{layers} layers")


def images(count: int) -> Samples:
    """Noise."""
    return Samples.of(torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))


def sensitivity(layers: int, count: int, widths: int) -> float:
    """Of so many layers on so many images at so many widths."""
    of, x = network(layers), images(count)
    precisions = [Precision(bits) for bits in (2, 4, 6, 8)[:widths]]
    return seconds(lambda: measure(of, x, precisions, 0, ""))


def finalization(layers: int, count: int) -> float:
    """Of so many layers on so many images, at 4 bits."""
    of, x = network(layers), images(count)
    config = BitConfig(of.table.names, (Precision(4),) * len(of.table))
    return seconds(lambda: reconstruct(of, x, config))


def rows() -> list[dict[str, Any]]:
    """By step and by what grows, the sizes and their seconds."""
    small = LAYERS[0], IMAGES[1], WIDTHS[1]
    found = [
        ("sensitivity", "layers", LAYERS, [sensitivity(at, small[1], small[2]) for at in LAYERS]),
        ("sensitivity", "images", IMAGES, [sensitivity(small[0], at, small[2]) for at in IMAGES]),
        ("sensitivity", "widths", WIDTHS, [sensitivity(small[0], small[1], at) for at in WIDTHS]),
        ("finalization", "layers", LAYERS, [finalization(at, small[1]) for at in LAYERS]),
        ("finalization", "images", IMAGES, [finalization(small[0], at) for at in IMAGES]),
    ]
    return [
        {"step": step, "grows": what, "sizes": list(sizes), "seconds": [round(value, 2) for value in values]}
        for step, what, sizes, values in found
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The page's table."""
    lines = ["| step | grows | sizes | seconds | each doubling |", "|---|---|---|---|---|"]
    for row in rows:
        values = row["seconds"]
        ratios = ", ".join(f"{after / before:.2f}" for before, after in itertools.pairwise(values))
        sizes, times = (" / ".join(str(value) for value in row[name]) for name in ("sizes", "seconds"))
        lines.append(f"| {row['step']} | {row['grows']} | {sizes} | {times} | × {ratios} |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    found = rows()
    result = {"machine": machine(), "versions": versions(), "rows": found}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    put(PAGE, "bench_growth", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
