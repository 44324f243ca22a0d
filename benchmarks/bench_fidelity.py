"""Does the prediction rank configurations of one size as their measured divergence does?

    python benchmarks/bench_fidelity.py

MobileNetV2 on ImageNet (../shared/data or MPSEARCH_DATA), 1.5 MB: for each predictor the configuration it picks and
five neighbours within 2 % of the budget; every one is measured after the rounding that the cache is built from, on a
sixth of the validation images. Writes benchmarks/results/bench_fidelity.json.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from mpsearch.console import Console
from mpsearch.data import make_images, normalize
from mpsearch.evaluate import score
from mpsearch.exact import exact_additive
from mpsearch.folder import RunFolder
from mpsearch.options import RunOptions
from mpsearch.pipeline import Run
from mpsearch.problem import BitProblem, Genomes, build_problem
from mpsearch.search import best_at_budget
from mpsearch.sensitivity import SHRINKAGE, measure, weight_errors
from mpsearch.sensitivity_table import SensitivityTable
from mpsearch.summary import versions
from recon.attach import bias_of
from recon.compute import map_batches

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 1_500_000
NEIGHBOURS = 5


def predictors(table: SensitivityTable) -> dict[str, SensitivityTable]:
    """The cache as it is, and what else could be made of the same terms."""
    return {
        "diagonal Fisher, intra-layer": replace(table, intra=table.diagonal).additive(),
        "full Fisher, intra-layer": table.additive(),
        "full Fisher, inter-layer at 1/2 (ours)": table,
        "full Fisher, inter-layer in full": replace(table, inter=table.inter / SHRINKAGE),
    }


def near(problem: BitProblem, genome: Genomes, rng: np.random.Generator) -> Genomes:
    """A genome a few random steps from `genome`, its file within 2 % below the budget."""
    while True:
        other = genome.copy()
        moved = rng.choice(len(genome), rng.integers(4, 14), replace=False)
        other[moved] = np.clip(other[moved] + rng.choice([-1, 1], len(moved)), 0, problem.sizes[moved] - 1)
        if 0.98 * BUDGET < problem.evaluate(other[None])[0, 1] <= BUDGET:
            return other


def divergences(job: Run, genomes: Genomes) -> list[tuple[float, float]]:
    """KL in nats and top-1 in percent of every genome, its layers rounded as the cache was measured."""
    errors = weight_errors(job.network, job.calibration, job.precisions)
    assert job.data.val is not None
    assert job.data.val.y is not None
    val = make_images(job.data.val.x[::6].contiguous(), job.data.val.y[::6].contiguous())
    x = normalize(val.x, job.model.mean, job.model.std)
    reference = map_batches(job.network.model, x).float()
    found = []
    for genome in genomes:
        work = job.network.copy()
        for name, choice in zip(job.table.names, genome, strict=True):
            layer = work.layer(name)
            error, bias = errors[name][choice]
            layer.weight.data += error
            bias_of(layer).data += bias
        result = score(map_batches(work.model, x).float(), val.y, reference)
        found.append((result.kl_nats or 0.0, result.top1 or 0.0))
    return found


def main() -> None:
    """Measures, prints a table, writes the results."""
    data = Path(os.environ.get("MPSEARCH_DATA") or ROOT.parent / "shared" / "data")
    weights = str(data / "models" / "mobilenet_v2_imagenet.safetensors")
    options = RunOptions(
        "mobilenetv2", size_budget_bytes=BUDGET, weights=weights, data=str(data / "imagenet"), edges="free"
    )
    job = Run(options, RunFolder(Path("unused")), Console())
    table = measure(job.network, job.calibration, job.precisions, 0, "bench")
    rng = np.random.default_rng(0)
    problems: dict[str, BitProblem] = {}
    picks: list[Genomes] = []
    for name, predictor in predictors(table).items():
        problem = build_problem(job.table, job.costs, predictor, budgets={"size_bytes": float(BUDGET)})
        start = exact_additive(problem)
        assert start is not None
        best = best_at_budget(problem, start[None])
        assert best is not None
        problems[name] = problem
        picks += [best, *(near(problem, best, rng) for _ in range(NEIGHBOURS))]
    genomes = np.array(picks)
    measured = divergences(job, genomes)
    kl: NDArray[np.float64] = np.array([divergence for divergence, _ in measured])
    rows: list[dict[str, Any]] = []
    print(f"{'predictor':40} {'tau':>6} {'rho':>6} {'pick: KL':>9} {'top-1':>6}")
    for index, (name, problem) in enumerate(problems.items()):
        predicted = problem.values(genomes)[:, 0]
        pick = index * (NEIGHBOURS + 1)
        tau, rho = float(kendalltau(predicted, kl)[0]), float(spearmanr(predicted, kl)[0])
        rows.append({"predictor": name, "tau": tau, "rho": rho, "pick_kl": kl[pick], "pick_top1": measured[pick][1]})
        print(f"{name:40} {tau:6.2f} {rho:6.2f} {kl[pick]:9.3f} {measured[pick][1]:6.2f}")
    path = ROOT / "benchmarks" / "results" / "bench_fidelity.json"
    about = {"machine": machine(), "versions": versions()}
    results = {**about, "budget_bytes": BUDGET, "configurations": len(genomes), "predictors": rows}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
