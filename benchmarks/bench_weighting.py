"""Which cells of a detector should count: what divergences say of mAP, for configurations of YOLOX-nano.

    python benchmarks/bench_weighting.py FOLDER

FOLDER is a run of YOLOX-nano at 500 kB (`mpsearch run …`, see `bench_detection.py`). W4 and the run's choice, each with
changes of 16 layers at random, and W5, are rounded as the sensitivity cache rounds them and measured on the validation
images; W4's and the choice's finished models may stand beside them. Writes benchmarks/results/bench_weighting.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_detection import edges, uniform
from machine import machine
from networks import ROOT
from scipy.stats import kendalltau
from torch import nn

from hwmodel import BitConfig, Precision
from mpsearch.export.packed import fill_packed
from mpsearch.files.folder import RunFolder
from mpsearch.finish.evaluate import outputs_on
from mpsearch.request.options import RunOptions
from mpsearch.run.artifacts import read_front
from mpsearch.run.steps import CACHE, Run
from mpsearch.run.summary import versions
from mpsearch.sensitivity.cache import load_scores
from mpsearch.sensitivity.scores import Scores
from mpsearch.show.console import Console
from mpsearch.tasks.task import plainly
from recon.compute.arithmetic import channels_last, fast
from recon.graph.network import Network
from recon.graph.samples import Samples, named_parts
from recon.likelihood.cells import Cells
from recon.quantizers.learned import bias_of
from recon.transforms.basis import balanced

RESULTS = ROOT / "benchmarks" / "results" / "bench_weighting.json"
CHANGED, PAIRS = 16, 4
TITLES = {
    "object": "objectness everywhere, class and box by the probability of an object (kept)",
    "object, without boxes": "the same without boxes",
    "objectness alone": "objectness alone",
    "top 100": "everything at the 100 cells with the highest scores",
    "all cells": "everything at all cells",
    "all cells, without boxes": "class and objectness at all cells",
}


def choices(cells: Cells) -> dict[str, Cells]:
    """Divergences to compare."""
    return {
        "object": cells,
        "object, without boxes": replace(cells, boxes=None),
        "objectness alone": replace(cells, boxes=None, classes=None),
        "top 100": replace(cells, weighting="top"),
        "all cells": replace(cells, weighting="all"),
        "all cells, without boxes": replace(cells, weighting="all", boxes=None),
    }


def rounded(network: Network, scores: Scores, config: BitConfig) -> nn.Module:
    """The network, in its balanced basis, with the cache's roundings."""
    work = balanced(network).copy()
    for name in config.layers:
        found = scores.rounded[Precision(config[name].w)][name]
        layer = work.layer(name)
        layer.weight.data = channels_last(found.weight.dequantize())
        bias_of(layer).data = bias_of(layer).data + found.bias
    return work.model


def configurations(network: Network, chosen: BitConfig) -> Iterator[tuple[str, BitConfig]]:
    """W4, W5 and the chosen one, and random changes of the first and the last by turns."""
    four = uniform(network, "W4A32")
    yield from (("W4", four), ("chosen", chosen), ("W5", uniform(network, "W5A32")))
    rng, held = np.random.default_rng(0), edges(network)
    free = [name for name in network.table.names if name not in held]
    for pair in range(PAIRS):
        for title, base in (("chosen", chosen), ("W4", four)):
            bits = {name: base[name] for name in base.layers}
            for name in rng.choice(free, CHANGED, replace=False):
                near = title == "chosen"
                width = np.clip(base[name].w + rng.choice([-1, 1]), 2, 6) if near else rng.choice([3, 5, 6])
                bits[name] = Precision(int(width))
            yield f"{title}, changed {pair}", BitConfig(base.layers, tuple(bits[name] for name in base.layers))


def fast_call(model: nn.Module, samples: Samples) -> Any:
    """The outputs, computed as in calibration."""
    with fast(torch.device("cpu")):
        return tuple(z.float() for z in plainly(model, samples))


def table(results: dict[str, Any]) -> str:
    """The rank correlations, in Markdown."""
    rows = [f"| {TITLES[name]} | {tau:.2f} |" for name, tau in results["kendall_tau"].items()]
    return "\n".join(["| what counts | τ with mAP |", "|---|---|", *rows])


def main(folder: Path) -> None:
    """Measures, prints the rank correlations and writes the results."""
    job = Run(RunOptions.from_toml(folder / "config.toml"), RunFolder(folder), Console())
    loaded, network = job.loaded, job.loaded.network
    judge, (cells,) = loaded.judge, loaded.likelihood.heads
    assert isinstance(cells, Cells)
    scores, front = load_scores(folder / CACHE, network), read_front(job.folder)
    known = choices(cells)
    rows: dict[str, Mapping[str, Any]] = {}

    def measure(name: str, model: nn.Module) -> None:
        tallies = {metric.name: metric.start() for metric in judge.metrics if metric.name != "kl"}
        nats = dict.fromkeys(known, 0.0)
        for (outputs, targets), reference in zip(
            outputs_on(judge.split, model, fast_call), judge.reference, strict=True
        ):
            for tally in tallies.values():
                tally.add(outputs, targets, reference)
            for title, head in known.items():
                nats[title] += float(head.divergence(named_parts(reference), named_parts(outputs)).sum())
        found = {title: value / len(judge.split) for title, value in nats.items()}
        rows[name] = {"metrics": {title: tally.value() for title, tally in tallies.items()}, "nats": found}
        print(name, rows[name], flush=True)

    measure("chosen, finished", fill_packed(folder / "model-budget.safetensors", network).model)
    for name, config in configurations(network, front.config(front.best())):
        measure(name, rounded(network, scores, config))
    precise = [row["metrics"]["map"] for row in rows.values()]
    taus = {title: float(kendalltau([-row["nats"][title] for row in rows.values()], precise)[0]) for title in known}
    results = {"machine": machine(), "versions": versions(), "kendall_tau": taus, "rows": rows}
    print(table(results))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
