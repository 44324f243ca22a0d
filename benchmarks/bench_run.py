"""The main job as a user runs it: accuracy, size, time and memory, on the embedded default and on real data.

    python benchmarks/bench_run.py

Needs ImageNet images and weights in ../shared/data (or MPSEARCH_DATA) for the second half. Writes
benchmarks/results/bench_run.json and the README's picture, docs/front.png.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from machine import machine

from hwmodel import Precision
from mpsearch.export.packed import fill_packed
from mpsearch.files.folder import RunFolder
from mpsearch.finish.evaluate import outputs_on
from mpsearch.request.assignment import uniform
from mpsearch.request.options import RunOptions
from mpsearch.run.steps import Run
from mpsearch.show.console import Console
from recon.quantizers.quantized import plainly_rounded, quantized
from recon.reconstruct import reconstruct
from recon.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
BUDGET = "1.5MB"


def command(out: Path, *more: str) -> dict[str, Any]:
    """One `mpsearch run --json`: its summary, metrics named as in the results, and the seconds of the whole process."""
    arguments = ["run", "--model", "mobilenetv2", "--size-budget", BUDGET, "--out", str(out), "--json", *more]
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "mpsearch", *arguments], check=True, stdout=subprocess.PIPE)
    summary: dict[str, Any] = json.loads(done.stdout)
    metrics = summary.pop("metrics")
    del summary["judged_by"], metrics["float"]["kl"]  # which is 0
    for split in ("calibration", "validation"):
        summary[f"{split}_images"] = summary.pop(f"{split}_samples")
    return {"wall_seconds": round(time.perf_counter() - begin, 1), **summary, **flat(metrics)}


def flat(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """`top1_float`, `kl_reconstructed`, … of metrics by state and name, as the results keep them."""
    titles = {"float": "float", "plain": "nearest", "finished": "reconstructed"}
    return {f"{name}_{titles[state]}": value for state, found in metrics.items() for name, value in found.items()}


def embedded_uniform(folder: Path) -> list[dict[str, Any]]:
    """The embedded network at uniform bits (first and last layer 8): plain rounding beside reconstruction."""
    job = Run(RunOptions(model="mobilenetv2", size_budget_bytes=10**9), RunFolder(folder), Console())
    names, rows = job.table.names, []
    for bits in (4, 3, 2):
        config = uniform(names, Precision(bits), (names[0], names[-1]), Precision(8))
        leaves = job.loaded.network.leaves(job.loaded.calibration)
        rounded = plainly_rounded(job.loaded.network, leaves, config)
        begin = time.perf_counter()
        learned = reconstruct(job.loaded.network, job.loaded.calibration, config, Settings())
        seconds = time.perf_counter() - begin
        states = {"plain": rounded, "finished": learned.layers}
        measure = job.loaded.judge.measure
        found = {state: measure(quantized(job.loaded.network, made).model) for state, made in states.items()}
        rows.append({"bits": bits, **flat(found), "seconds": round(seconds, 1)})
    return rows


def official(data: Path, weights: Path, folder: Path) -> dict[str, Any]:
    """Top-1 on those validation images that are of ImageNet's own validation set, chosen by nobody, and how many the
    file loses and wins."""
    lines = (data / "manifest.csv").read_text("utf-8").splitlines()
    chosen = [line.split(",")[0] for line in lines if line.startswith("val/") and line.endswith(",mo436_val")]
    for name in ("calib", "classes.txt", *chosen):
        (folder / "official" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "official" / name).symlink_to((data / name).resolve())
    options = RunOptions(
        model="mobilenetv2", weights=str(weights), data=str(folder / "official"), samples=16, size_budget_bytes=10**9
    )
    loaded = Run(options, RunFolder(folder / "official_run"), Console()).loaded
    packed = fill_packed(folder / "imagenet" / "model-budget.safetensors", loaded.network).model
    hits = [
        torch.cat([outputs.argmax(1).cpu() == labels for outputs, labels in outputs_on(loaded.validation, model)])
        for model in (loaded.network.model, packed)
    ]
    right, still = hits
    return {
        "images": len(right),
        "top1_float": 100 * float(right.double().mean()),
        "top1_reconstructed": 100 * float(still.double().mean()),
        "lost": int((right & ~still).sum()),
        "won": int((still & ~right).sum()),
    }


def main() -> None:
    """Runs everything, prints a table, writes the results."""
    data = Path(os.environ.get("MPSEARCH_DATA") or ROOT.parent / "shared" / "data")
    results: dict[str, Any] = {"machine": machine(), "budget": BUDGET}
    with TemporaryDirectory() as name:
        folder = Path(name)
        results["embedded"] = command(folder / "embedded")
        results["embedded_uniform"] = embedded_uniform(folder / "uniform")
        if (data / "imagenet").is_dir():
            weights = data / "models" / "mobilenet_v2_imagenet.safetensors"
            more = ("--weights", str(weights), "--data", str(data / "imagenet"))
            results["imagenet"] = command(folder / "imagenet", *more)
            results["imagenet_again_seconds"] = command(folder / "imagenet", *more)["wall_seconds"]
            results["imagenet_official"] = official(data / "imagenet", weights, folder)
            results["imagenet_bits"] = json.loads((folder / "imagenet/chosen/budget.json").read_text())["config"]
            shutil.copy(folder / "imagenet" / "front.png", ROOT / "docs" / "front.png")
    for row in ("embedded", "imagenet"):
        if row in results:
            results[row]["weights"] = Path(results[row]["weights"]).name
            results[row]["data"] = results[row]["data"].rpartition("/")[2]
    path = ROOT / "benchmarks" / "results" / "bench_run.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


def table(results: dict[str, Any]) -> str:
    """The README's table, in Markdown."""
    lines = [
        "| 1.5 MB, whole file | float | plain rounding | mpsearch | KL, nats | file, bytes | time | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, title in (("imagenet", "MobileNetV2, ImageNet"), ("embedded", "embedded default")):
        if key in results:
            row = results[key]
            top1 = [f"{row[name]:.2f} %" for name in ("top1_float", "top1_nearest", "top1_reconstructed")]
            kl = f"{row['kl_nearest']:.3f} → {row['kl_reconstructed']:.3f}"
            cells = (title, *top1, kl, f"{row['size_bytes']:,}", f"{row['wall_seconds']:.0f} s")
            lines.append(f"| {' | '.join(cells)} | {row['peak_rss_bytes'] / 1e9:.1f} GB |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
