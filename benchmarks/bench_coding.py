"""Entropy-coded weights beside codes of a fixed width: a layer's error by bits, and whole networks in whole files.

    python benchmarks/bench_coding.py [layer] [resnet20@90kB@0@entropy mobilenetv2@1.5MB,1.1MB@0@fixed …]

Without arguments all of it: the layer, and every network and budget of BUDGETS with seeds 0, 1 and 2, in both codings.
With some, what they name is measured again, and the rest of benchmarks/results/bench_coding.json stays. Several budgets
are points of one front, which ends at the largest of them. Needs ../shared/data (or MPSEARCH_DATA). Accuracy and KL are
of `val`, on which a run chooses nothing, and of every other image of it, by which nothing was decided while this was
made; seconds are those of a machine that may have been shared.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from machine import machine
from networks import DATA, SAMPLES, SOURCES, start
from pages import replaced

from hwmodel import Precision
from hwmodel.precision import RATES
from mpsearch.export.packed import fill_packed
from mpsearch.files.folder import RunFolder
from mpsearch.finish.evaluate import Judge, outputs_on
from mpsearch.request.units import parse_size
from mpsearch.run.artifacts import read_front
from mpsearch.run.summary import versions
from recon.fit.obq import output_error
from recon.fit.start import TRELLIS_MOST, second_order_rounding, shrunk, widen
from recon.fit.trellis import finer, trellis_rounding
from recon.quantizers.coded import code_bits, coded_grid
from recon.quantizers.weights import QuantizedWeight, decode, encode, search_grid
from recon.statistics.moments import gather_moments
from recon.transforms.basis import balanced

BUDGETS = {
    "resnet20": ("90kB",),
    "mobilenetv2": ("1.1MB", "1.27MB", "1.5MB"),
    "efficientnet_lite0": ("1.6MB", "2.2MB"),
}
NAMED = ("network", "budget", "seed", "coding")
CODINGS, SEEDS = ("fixed", "entropy"), (0, 1, 2)
NETWORK, LAYER, IMAGES = "mobilenetv2", "features.8.conv.2", 64
FIXED = (2, 3, 4, 5, 6)
RESULT, PAGE = ROOT / "benchmarks" / "results" / "bench_coding.json", ROOT / "docs" / "coding.md"


def curve() -> list[dict[str, Any]]:
    """Bits a weight and the share of the power that is left as error: of normal weights by plain rounding, with the
    bound 4^−R of any code, and of the outputs of a layer by second-order rounding."""
    normal = torch.randn(64, 8192, generator=torch.Generator().manual_seed(0))
    job = start(NETWORK, IMAGES)
    network = balanced(job.loaded.network)
    layer = network.layer(LAYER)
    leaves = network.leaves(job.loaded.calibration.single())
    moments = gather_moments(network.module, {LAYER: layer}, leaves)[LAYER]
    weight, hessian = layer.weight.detach(), moments.hessian()
    power = float(output_error(weight.flatten(1), hessian).sum())
    rows = []
    precisions = [(Precision(bits), False) for bits in FIXED]
    precisions += [(Precision(8, rate=rate), path) for path in (False, True) for rate in RATES]
    for precision, path in precisions:
        rate = precision.rate
        if path and rate > TRELLIS_MOST:
            continue
        grid = coded_grid(normal, rate) if rate else search_grid(normal, precision.w, halves=True)
        codes = encode(normal, grid)
        if path:
            alike = torch.eye(normal.shape[1])[None]
            wanted, ridged = shrunk(normal, grid, alike)
            grid, codes = trellis_rounding(wanted, widen(grid, finer(rate), normal), alike, ridged, None)
        plain = QuantizedWeight(grid, codes.to(torch.uint8))
        own, place, _ = second_order_rounding(weight, precision, moments, trellis=path)
        stored = QuantizedWeight(own, place.round().to(torch.uint8))
        error = decode(place.round(), own) - weight
        rows.append(
            {
                "coding": "trellis" if path else "entropy" if rate else "fixed",
                "asked": precision.stored,
                "normal_bits": round(code_bits(plain) / normal.numel(), 3),
                "normal_error": float((plain.dequantize() - normal).square().mean()),
                "layer_bits": round(code_bits(stored) / weight.numel(), 3),
                "layer_error": float(output_error(error.flatten(1), hessian).sum()) / power,
            }
        )
    return rows


def run(network: str, budgets: list[str], seed: int, coding: str) -> list[dict[str, Any]]:
    """One `mpsearch run` to the largest budget, and points of its front for the others."""
    model, weights, images = SOURCES[network]
    paths = "--weights", str(DATA / "models" / f"{weights}.safetensors"), "--data", str(DATA / images)
    limits = {budget: parse_size(budget) for budget in budgets}
    largest = max(budgets, key=limits.__getitem__)
    with TemporaryDirectory() as path:
        options = ["--model", model, *paths, "--size-budget", largest, "--coding", coding, "--seed", str(seed)]
        command("run", *options, "--samples", str(SAMPLES[network]), "--out", path)
        folder = RunFolder(Path(path))
        front = read_front(folder)
        names = {largest: "budget"}
        for budget in budgets:
            if budget != largest:
                point = front.best({"size_bytes": limits[budget]})
                command("finalize", path, "--pick", str(point))
                names[budget] = f"point-{point}"
        summary = folder.read_json("summary.json")
        job = start(network)
        rows = []
        for budget, name in names.items():
            record = folder.read_json(f"chosen/{name}.json")
            finished = fill_packed(folder.file(f"model-{name}.safetensors"), job.loaded.network)
            same = {"network": network, "budget": budget, "seed": seed, "coding": coding}
            rows.append(same | row(record, summary) | on_the_other_half(job.loaded.judge, finished.model))
    return rows


def command(*words: str) -> None:
    """Runs `mpsearch`."""
    subprocess.run([sys.executable, "-m", "mpsearch", *words, "--json"], check=True, stdout=subprocess.DEVNULL)


def row(record: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """What the results keep of a finished model and of its run."""
    return {
        "size_bytes": record["size_bytes"],
        "predicted_bytes": record["predicted_bytes"],
        "mean_weight_bits": round(record["mean_weight_bits"], 3),
        "top1_float": record["metrics"]["float"]["top1"],
        "top1": record["metrics"]["finished"]["top1"],
        "kl": record["metrics"]["finished"]["kl"],
        "images": record["validation_samples"],
        "seconds": summary["seconds"] | {"reconstruct": round(record["seconds_reconstruct"], 2)},
        "peak_rss_bytes": summary["peak_rss_bytes"],
        "threads": summary["threads"],
    }


@torch.no_grad()
def on_the_other_half(judge: Judge, model: nn.Module) -> dict[str, float]:
    """Top-1 of the float and the finished network, and KL, on every other image."""
    kl, right, found = [], [], outputs_on(judge.split, model, judge.call)
    for (outputs, labels), known in zip(found, judge.reference, strict=True):
        kl.append((known.softmax(1) * (known.log_softmax(1) - outputs.log_softmax(1))).sum(1))
        right.append(torch.stack([known.argmax(1) == labels, outputs.argmax(1) == labels], 1))
    before, after = (100 * torch.cat(right)[1::2].double().mean(0)).tolist()
    return {"half_top1_float": before, "half_top1": after, "half_kl": float(torch.cat(kl)[1::2].mean())}


def table(rows: list[dict[str, Any]]) -> str:
    """Whole networks as the page shows them."""
    head = "| network | budget | coding | seed | bytes | predicted | top-1 % (float) | KL | the other half |"
    lines = [head, "|" + "---|" * 9]
    for r in sorted(
        rows, key=lambda r: (list(BUDGETS).index(r["network"]), r["budget"], r["coding"] != "fixed", r["seed"])
    ):
        sizes = f"{r['size_bytes']:,} | {r['predicted_bytes']:,}"
        accuracy = f"{r['top1']:.2f} ({r['top1_float']:.2f})"
        half = f"{r['half_top1']:.2f} ({r['half_top1_float']:.2f}), {r['half_kl']:.4f}"
        named = f"{r['network']} | {r['budget']} | {r['coding']} | {r['seed']}"
        lines.append(f"| {named} | {sizes} | {accuracy} | {r['kl']:.4f} | {half} |")
    return "\n".join(lines)


def curve_table(rows: list[dict[str, Any]]) -> str:
    """The layer's curve as the page shows it."""
    lines = [
        "| coding | asked | normal weights: bits, error | over the bound 4^−R | layer: bits, error |",
        "|" + "---|" * 5,
    ]
    for r in rows:
        over = r["normal_error"] * 4 ** r["normal_bits"]
        normal = f"{r['normal_bits']:.2f}, {r['normal_error']:.5f}"
        layer = f"{r['layer_bits']:.2f}, {r['layer_error']:.5f}"
        lines.append(f"| {r['coding']} | {r['asked']:g} | {normal} | {over:.2f} | {layer} |")
    return "\n".join(lines)


def page(text: str, results: dict[str, Any]) -> str:
    """The page with its tables."""
    text = replaced(text, "bench_coding layer", curve_table(results["layer"]))
    return replaced(text, "bench_coding networks", table(results["networks"]))


def main() -> None:
    results = json.loads(RESULT.read_text("utf-8")) if RESULT.is_file() else {"layer": [], "networks": []}
    networks = [(network, ",".join(budgets)) for network, budgets in BUDGETS.items()]
    every = [
        "layer",
        *("@".join([*pair, str(seed), coding]) for pair in networks for seed in SEEDS for coding in CODINGS),
    ]
    for name in sys.argv[1:] or every:
        if name == "layer":
            results["layer"] = curve()
        else:
            network, budgets, seed, coding = name.split("@")
            found = run(network, budgets.split(","), int(seed), coding)
            again = {tuple(r[part] for part in NAMED) for r in found}
            kept = [r for r in results["networks"] if tuple(r[part] for part in NAMED) not in again]
            results["networks"] = [*kept, *found]
        results |= {"machine": machine(), "versions": versions()}
        RESULT.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        PAGE.write_text(page(PAGE.read_text("utf-8"), results), "utf-8")
    print(curve_table(results["layer"]), table(results["networks"]), sep="\n\n")


if __name__ == "__main__":
    main()
