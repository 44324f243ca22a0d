"""Reconstruction beside plain rounding, AdaRound and the recipe of BRECQ: accuracy, divergence, time, memory.

    python benchmarks/bench_reconstruction.py                    # every row that has no result yet (many hours)
    python benchmarks/bench_reconstruction.py resnet20 W2A4      # rows whose name holds all these words
    python benchmarks/bench_reconstruction.py --again ours 0     # the same, whether they have a result or not

ResNet-20 on CIFAR-10, MobileNetV2 and EfficientNet-Lite0 on ImageNet (../shared/data or MPSEARCH_DATA); first and last
layer at 8 bits, and with activations so is the output of the first layer, as in BRECQ's code. Each row runs in a
process of its own and, when it is done, is written to benchmarks/results/bench_reconstruction.json and into the tables
of README.md and docs/reconstruction.md, so that a run can be stopped and continued.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from machine import machine
from networks import ROOT, start
from numpy.typing import NDArray
from scipy.stats import studentized_range

from hwmodel import FLOAT_BITS, BitConfig, LayerTable, Precision
from mpsearch.finish.evaluate import outputs_on
from mpsearch.run.memory import peak_rss_bytes
from mpsearch.run.summary import versions
from recon.compute.arithmetic import fast, picked
from recon.compute.store import Store
from recon.fit.start import nearest_start
from recon.fit.task import UnitTask, walk
from recon.quantizers.insert import find_ranges, quantize_inputs
from recon.quantizers.quantized import input_bits, plainly_rounded, quantized
from recon.reconstruct import gradient_steps, reconstruct
from recon.settings import Settings
from recon.statistics.fisher import Fisher

RESULTS = ROOT / "benchmarks" / "results" / "bench_reconstruction.json"
BITS = ("W4A32", "W3A32", "W2A32", "W4A4", "W2A4")
METHODS = ("plain", "ours", "adaround-2000", "brecq-2000")
COMPARED = {"resnet20": METHODS, "mobilenetv2": METHODS, "efficientnet_lite0": METHODS[:2]}
NETWORKS = tuple(COMPARED)
TITLES = {
    "plain": "plain rounding",
    "adaround-2000": "AdaRound, 2,000 steps a layer",
    "brecq-2000": "BRECQ, 2,000 steps a block",
    "brecq-20000": "BRECQ, 20,000",
    "ours": "mpsearch",
}
ABLATED = "resnet20", "W2A32"
ABLATION: dict[str, dict[str, Any]] = {
    "ours-layer": {"granularity": "layer"},
    "ours": {},
    "ours-stage": {"granularity": "stage"},
    "ours-network": {"granularity": "network"},
    "ours-mse": {"weighting": "mse"},
}
SEEDS = 3
DEAR = 1.3  # times the float forward and backward
STEPS = 10  # that are timed at once
FEW = 4  # blocks, as many as are named


def rows() -> list[str]:
    """Names of all rows: network, bits, method, seed."""
    names = [f"{network} {bits} {way} 0" for network, ways in COMPARED.items() for bits, way in product(BITS, ways)]
    names += [f"{network} {bits} ours {seed}" for network, bits in product(NETWORKS, BITS) for seed in range(1, SEEDS)]
    names += [" ".join((*ABLATED, method, str(seed))) for method, seed in product(ABLATION, range(SEEDS))]
    names += [f"resnet20 {bits} brecq-20000 0" for bits in BITS]
    names += [f"resnet20 W4A32 brecq-2000 {seed}" for seed in range(1, SEEDS)]  # there chance decides
    return [*dict.fromkeys(names), *(f"{network} steps" for network in NETWORKS)]


def config(table: LayerTable, bits: str) -> BitConfig:
    """`bits` in all layers but the first and the last."""
    precision = Precision.parse(bits)
    edge = replace(precision, w=8, a=FLOAT_BITS if precision.a == FLOAT_BITS else 8)
    inner = [precision] * (len(table) - 2)
    inner[0] = replace(precision, a=edge.a)
    return BitConfig(table.names, (edge, *inner, edge))


def settings(network: str, method: str, seed: int) -> Settings:
    """What a method's name stands for."""
    kind, _, steps = method.partition("-")
    if kind == "ours":
        return Settings(seed=seed, **ABLATION[method])
    if kind == "adaround":
        return Settings.adaround(int(steps), seed=seed)
    return Settings.brecq(int(steps), regulariser=0.01 if network == "resnet20" else 0.1, seed=seed)


def measure(row: str) -> dict[str, Any]:
    """One row's figures; `right` holds a bit an image, set where the network finds its label."""
    network, bits, method, seed = row.split(" ")
    job = start(network)
    judge = job.loaded.judge
    asked = config(job.table, bits)
    images = job.loaded.calibration
    started = time.perf_counter()
    if method == "plain":
        layers = plainly_rounded(job.loaded.network, job.loaded.network.leaves(images), asked)
    else:
        layers = reconstruct(job.loaded.network, images, asked, settings(network, method, int(seed))).layers
    seconds = time.perf_counter() - started
    model = quantized(job.loaded.network, layers).model
    found = judge.measure(model)
    right = torch.cat([(outputs.argmax(1).cpu() == labels) for outputs, labels in outputs_on(judge.split, model)])
    memory: dict[str, Any] = {"peak_rss_bytes": peak_rss_bytes()}
    if torch.cuda.is_available():
        memory = {"gpu": torch.cuda.get_device_name(), "peak_gpu_bytes": torch.cuda.max_memory_allocated()}
    return {
        "top1_float": judge.truth["top1"],
        "top1": found["top1"],
        "right": np.packbits(right.numpy()).tobytes().hex(),
        "kl": found["kl"],
        "seconds": seconds,
        **memory,
        "validation_images": len(right),
        "threads": torch.get_num_threads(),
    }


def measure_steps(network: str) -> dict[str, Any]:
    """Per block, the time of a reconstruction step over that of the float forward and backward of the same batch."""
    job = start(network)
    leaves, how = job.loaded.network.leaves(job.loaded.calibration[:64]), Settings(weighting="mse")
    ratios: dict[str, dict[str, float]] = {}
    for bits in ("W4A32", "W4A4"):
        asked = config(job.table, bits)
        work = quantize_inputs(job.loaded.network, input_bits(asked))
        tasks = walk(work, job.loaded.network, leaves, how, Fisher(), Store(2**40, work.device))
        ratios[bits] = {task.name: step_ratio(task, asked, how) for task in tasks}
    return {"ratios": ratios}


def step_ratio(task: UnitTask, asked: BitConfig, how: Settings) -> float:
    """What gradient steps of a unit cost over as many float forward and backward passes of the same batch."""
    find_ranges(task.module, task.layers, task.x)
    pick, where = task.draw(how.batch), task.store.device
    read, targets = picked(task.x, pick, where), [target[pick].to(where).float() for target in task.targets]

    def floats() -> None:
        for _ in range(STEPS):
            leaves = [x.detach().requires_grad_() for x in read]
            task.float_module.requires_grad_()
            with fast(where):
                outputs = task.float_module(*leaves)
            errors = [(z.float() - target).square().mean() for z, target in zip(outputs, targets, strict=True)]
            torch.autograd.backward(errors)
            task.float_module.zero_grad()
            task.float_module.requires_grad_(False)

    plain = best(floats)
    nearest_start(task, asked, how)
    return best(partial(gradient_steps, task, how, STEPS)) / plain


def best(function: Callable[[], None], repeats: int = 5) -> float:
    """The least of some times of a call, in seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def shown_seconds(row: dict[str, Any]) -> str:
    """A row's seconds, with a star where they are a GPU's."""
    return f"{row['seconds']:.0f}{'*' if 'gpu' in row else ''}"


def mean(results: dict[str, Any], network: str, bits: str, method: str) -> dict[str, Any]:
    """The mean of the seeds that were measured, the range of their top-1 as `tops`; nothing where there are none."""
    names = [f"{network} {bits} {method} {seed}" for seed in range(SEEDS)]
    seeds = [results["rows"][name] for name in names if name in results["rows"]]
    if not seeds:
        return {}
    means = {key: statistics.fmean(row[key] for row in seeds) for key in ("top1", "kl", "seconds")}
    tops = [row["top1"] for row in seeds]
    return {**seeds[0], **means, "tops": (min(tops), max(tops)) if len(tops) > 1 else ()}


def table(results: dict[str, Any], network: str, kinds: Iterable[tuple[str, str]]) -> str:
    """A network's figures, in Markdown: a line a bit-width and method, the range of top-1 where there are seeds."""
    lines = ["| bits | method | top-1 | KL, nats | seconds | memory |", "|---|---|---|---|---|---|"]
    for bits, method in kinds:
        found = mean(results, network, bits, method)
        if found:
            spread = " ({:.2f} to {:.2f})".format(*found["tops"]) if found["tops"] else ""
            memory = found.get("peak_gpu_bytes") or found["peak_rss_bytes"]
            top1 = f"{found['top1']:.2f} %{spread}"
            cells = (bits, method, top1, f"{found['kl']:.3f}", shown_seconds(found), f"{memory / 1e9:.1f} GB")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rights(results: dict[str, Any], network: str, bits: str) -> NDArray[np.bool_]:
    """Which images (seeds, N) the networks of our seeds find the label of, as far as that was kept."""
    rows = [results["rows"].get(f"{network} {bits} ours {seed}", {}) for seed in range(SEEDS)]
    rows = [row for row in rows if "right" in row]
    packed = [np.frombuffer(bytes.fromhex(row["right"]), np.uint8) for row in rows]
    kept = [np.unpackbits(found, count=row["validation_images"]) for found, row in zip(packed, rows, strict=True)]
    return np.array(kept, dtype=bool)


def luck(results: dict[str, Any], network: str) -> str:
    """How far the seeds' top-1 lie apart, and how far those of networks that are as good as each other would, in
    Markdown: where only one of two is right, a coin decides which. Empty where no bit-width has all its seeds."""
    lines = ["| bits | right with one of two seeds alone | top-1 spans | by chance, on average | 95 times in 100 |"]
    lines.append("|---|---|---|---|---|")
    for bits in BITS:
        right = rights(results, network, bits)
        if len(right) < SEEDS:
            continue
        apart = statistics.fmean(float((one != other).sum()) for one, other in combinations(right, 2))
        deviation = 100 * math.sqrt(apart / 2) / right.shape[1]  # of one network's top-1
        spans = [float(np.ptp(100 * right.mean(1))), deviation * 3 / math.sqrt(math.pi)]
        spans.append(deviation * float(studentized_range.ppf(0.95, SEEDS, np.inf)))
        lines.append(f"| {bits} | {apart:.0f} of {right.shape[1]:,} | {' | '.join(f'{span:.2f}' for span in spans)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def brief(results: dict[str, Any]) -> str:
    """Top-1 and seconds of every network, bit-width and method that was measured, in Markdown."""
    there = {name.split(" ")[2] for name in results["rows"] if not name.endswith("steps")}
    methods = [method for method in TITLES if method in there]
    lines = [f"| top-1, seconds | {' | '.join(TITLES[method] for method in methods)} |"]
    lines.append("|---" * (len(methods) + 1) + "|")
    for network, bits in product(NETWORKS, BITS):
        found = [mean(results, network, bits, method) for method in methods]
        if any(found):
            cells = [f"{row['top1']:.2f} %, {shown_seconds(row)} s" if row else "" for row in found]
            lines.append(f"| {network}, {bits} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(results: dict[str, Any]) -> str:
    """Everything, in Markdown: a table a network, and what a step costs over the float forward and backward."""
    parts = []
    for network in NETWORKS:
        rows = [row for name, row in results["rows"].items() if name.startswith(network) and "top1" in row]
        if rows:
            threads = sorted({row["threads"] for row in rows})
            told = f"{network}: float {rows[0]['top1_float']:.2f} % on {rows[0]['validation_images']:,} images, "
            parts.append(f"{told}{', '.join(map(str, threads))} thread(s)")
            parts.append(table(results, network, product(BITS, TITLES)))
        cost = results["rows"].get(f"{network} steps")
        lines = []
        for bits, ratios in cost["ratios"].items() if cost else ():
            median = sorted(ratios.values())[len(ratios) // 2]
            dear = [f"{name} {ratio:.2f}" for name, ratio in ratios.items() if ratio > DEAR]
            which = ", ".join(dear) if len(dear) <= FEW else f"{len(dear)} of {len(ratios)} blocks"
            most = f"median {median:.2f}, {max(ratios.values()):.2f} at most"
            lines.append(f"- a step at {bits}: {most}; above {DEAR}: {which or 'none'}")
        if lines:
            parts.append("\n".join(lines))
        spans = luck(results, network)
        if spans:
            parts += [f"{network}, {SEEDS} seeds, in points:", spans]
    network, bits = ABLATED
    parts.append(f"{network}, what is fitted at once (ours: blocks), and without the Fisher information (mse):")
    parts.append(table(results, network, product((bits,), ABLATION)))
    return "\n\n".join(parts)


def main(words: list[str]) -> None:
    """Measures what is missing (all, after `--again`) of the rows whose names hold all `words`; prints the tables."""
    if words[:1] == ["--row"]:
        row = words[1]
        print(json.dumps(measure_steps(row.split(" ")[0]) if row.endswith("steps") else measure(row)))
        return
    again, words = "--again" in words, [word for word in words if word != "--again"]
    results = stored()
    for row in rows():
        if (row in results["rows"] and not again) or not all(word in row.split(" ") for word in words):
            continue
        print(row, flush=True)
        done = subprocess.run([sys.executable, __file__, "--row", row], stdout=subprocess.PIPE, check=True, text=True)
        results = keep(row, json.loads(done.stdout.splitlines()[-1]))
    print(brief(results), page(results), sep="\n\n")


def stored() -> dict[str, Any]:
    """The results so far."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"rows": {}}
    return found


def keep(row: str, found: dict[str, Any]) -> dict[str, Any]:
    """Writes a row's figures into the results, which are returned, and the pages' tables anew."""
    before = stored()
    results = {**before, "machine": machine(), "versions": versions(), "rows": {**before["rows"], row: found}}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for path, made in ((ROOT / "README.md", brief), (ROOT / "docs" / "reconstruction.md", page)):
        text = path.read_text("utf-8")
        if made(before) not in text:
            print(f"{path.name} does not hold the table of the results before: put it there", file=sys.stderr)
        path.write_text(text.replace(made(before), made(results)), "utf-8")
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
