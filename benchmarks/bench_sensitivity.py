"""What the sensitivity cache of MobileNetV2 costs: time and memory, how they grow, and what growing it costs.

    python benchmarks/bench_sensitivity.py

ImageNet images and weights in ../shared/data (or MPSEARCH_DATA). Every row is the faster of two processes of its
own. Writes benchmarks/results/bench_sensitivity.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from machine import machine
from networks import ROOT, WBITS, start
from scipy.optimize import nnls

from hwmodel import Precision
from mpsearch.run.memory import peak_rss_bytes
from mpsearch.run.summary import versions
from mpsearch.sensitivity.measure import measure, split
from recon.graph.samples import Samples

RESULTS = ROOT / "benchmarks" / "results" / "bench_sensitivity.json"
RUNS = 2  # of which the fastest counts: other work on the machine only ever adds to the time
LAYERS, CANDIDATES, IMAGES = 53, len(WBITS), 256
# Layers, candidates and images of fresh caches: the whole one first, then each of the three cut down.
FRESH = (
    (LAYERS, CANDIDATES, IMAGES),
    *((LAYERS, count, IMAGES) for count in range(1, CANDIDATES)),
    *((LAYERS, CANDIDATES, count) for count in (64, 128, 512)),
    *((count, CANDIDATES, IMAGES) for count in (13, 26, 40)),
)


def fresh(layers: int, candidates: int, images: int) -> dict[str, Any]:
    """A cache of some of the layers, candidates and images, from nothing."""
    job = start("mobilenetv2", samples=images)
    spread = np.linspace(0, LAYERS - 1, layers).round().astype(int)
    table = replace(job.table, layers=tuple(job.table[index] for index in spread))
    network = replace(job.loaded.network, table=table)
    x, precisions = job.loaded.calibration, [Precision(w) for w in WBITS[:candidates]]
    began = time.perf_counter()
    measure(network, x, precisions, 0, "bench")
    return {
        "layers": layers,
        "candidates": candidates,
        "images": images,
        "macs": table.macs,
        "seconds": time.perf_counter() - began,
        "peak_rss_bytes": peak_rss_bytes(),
        "threads": torch.get_num_threads(),
    }


def grown() -> dict[str, float]:
    """Seconds of a fresh cache, of one candidate more, and of as many images more."""
    job, seconds = start("mobilenetv2"), {}
    network, x, precisions = job.loaded.network, job.loaded.calibration, job.candidates.precisions

    def timed(name: str, count: int, widths: tuple[Precision, ...], known: Any = None) -> Any:
        began = time.perf_counter()
        scores = measure(network, x[:count], widths, 0, "bench", known)
        seconds[name] = time.perf_counter() - began
        return scores

    four = timed("four_candidates", IMAGES, precisions[:2] + precisions[3:])
    five = timed("one_candidate_more", IMAGES, precisions, four)
    timed("images_more", 2 * IMAGES, precisions, five)
    timed("fresh", 2 * IMAGES, precisions)
    return seconds


def linear(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Least squares of seconds = share · rounding + judged images · (backward + share · scoring), with share
    the candidates times what the layers have of the MACs; `r2` is the explained share of the variance, `worst` the
    largest relative error."""
    macs = max(row["macs"] for row in rows)
    share = np.array([row["macs"] / macs * row["candidates"] for row in rows])
    judged = np.array([len(split(Samples.of(torch.empty(row["images"])))[1]) for row in rows], np.float64)
    seconds = np.array([row["seconds"] for row in rows])
    terms = np.stack([share, judged, judged * share], 1)
    found, _ = nnls(terms, seconds)
    error = terms @ found - seconds
    names = ("rounding", "backward", "scoring")
    return {
        **dict(zip(names, found.tolist(), strict=True)),
        "r2": 1 - float(error.var() / seconds.var()),
        "worst": float(np.abs(error / seconds).max()),
    }


def text(results: dict[str, Any]) -> str:
    """The figures, in Markdown."""
    lines = ["| layers | candidates | images | seconds | peak memory |", "|---|---|---|---|---|"]
    for row in results["fresh"]:
        memory = f"{row['peak_rss_bytes'] / 2**30:.2f} GiB"
        lines.append(f"| {row['layers']} | {row['candidates']} | {row['images']} | {row['seconds']:.1f} | {memory} |")
    linear, grown = results["linear"], results["grown"]
    backward, scoring = 1000 * linear["backward"], 1000 * linear["scoring"]
    told = [
        "",
        f"On {results['fresh'][0]['threads']} threads: {linear['rounding']:.1f} s for every candidate's roundings, "
        f"{backward:.0f} ms for every image that judges, and {scoring:.1f} ms more for",
        "every candidate on every such image (of all layers; for fewer of them, by their share of the MACs): "
        f"{100 * linear['r2']:.1f} % of the variance.",
        f"{IMAGES} images at four candidates take {grown['four_candidates']:.0f} s, a fifth candidate "
        f"{grown['one_candidate_more']:.0f} s more, {IMAGES} images more {grown['images_more']:.0f} s; "
        f"all that at once {grown['fresh']:.0f} s.",
    ]
    return "\n".join(lines + told)


def main(words: list[str]) -> None:
    """Measures everything, prints it, writes the results."""
    if words:
        row = grown() if words[0] == "grown" else fresh(*map(int, words))
        print(json.dumps(row))
        return

    def measured(*arguments: object) -> Any:
        command = [sys.executable, __file__, *map(str, arguments)]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)

    rows = [min((measured(*row) for _ in range(RUNS)), key=lambda found: found["seconds"]) for row in FRESH]
    results = {"machine": machine(), "versions": versions(), "fresh": rows, "linear": linear(rows)}
    results["grown"] = measured("grown")
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(text(results))


if __name__ == "__main__":
    main(sys.argv[1:])
