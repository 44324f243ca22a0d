"""Does the prediction rank configurations of one size as their measured divergence does?

    python benchmarks/bench_fidelity.py                 # about two hours on two cores; can be stopped and continued
    python benchmarks/bench_fidelity.py resnet20        # one network

MobileNetV2 on ImageNet and ResNet-20 on CIFAR-10 (../shared/data or MPSEARCH_DATA), three budgets each. At each of
them: the configuration that each predictor picks, and neighbours of those within 2 % of the budget. Each is measured
after plain rounding and after a finalization shortened to the second-order start and fewer images (`FINALIZED`);
ResNet-20's twice, with nothing in common, which tells how much of a ranking is chance. What the predictors pick is also
finished as a user gets it, with several seeds (`SEEDS`), and measured on all validation images. Writes
benchmarks/results/bench_fidelity.json.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from typing import Any

import numpy as np
import torch
from machine import machine
from networks import ROOT, start
from numpy.typing import NDArray
from predictors import Predictor, predictors
from scipy.stats import kendalltau, spearmanr

from hwmodel import BitConfig, Precision
from mpsearch.finish.evaluate import Judge
from mpsearch.optimization.build import build_problem
from mpsearch.optimization.problem import BitProblem, Genomes
from mpsearch.run.steps import Run
from mpsearch.run.summary import versions
from mpsearch.sensitivity.table import SensitivityTable
from mpsearch.sources.split import Split
from recon.compute.arithmetic import mixed_order
from recon.quantizers.quantized import plainly_rounded, quantized
from recon.reconstruct import reconstruct
from recon.settings import Settings

RESULTS = ROOT / "benchmarks" / "results" / "bench_fidelity.json"
BUDGETS = {"resnet20": (90_000, 110_000, 140_000), "mobilenetv2": (1_100_000, 1_500_000, 2_000_000)}
CONFIGS = 60
FINALIZED = {"resnet20": (512, 2), "mobilenetv2": (128, 1)}  # images, runs
SEEDS = {"resnet20": 3, "mobilenetv2": 1}  # with which a pick is finished
PARTS = 4  # a run is measured on every fourth validation image
RESAMPLED = 2000
WORKERS = 2

Found = dict[str, float]


class Measurer:
    """Measures configurations, given as one digit of bits a layer, in a process of its own with one thread.

    Runs have calibration images, validation images and seeds of their own.
    """

    def __init__(self, network: str) -> None:
        torch.set_num_threads(1)
        self.job = start(network)
        count, runs = FINALIZED[network]
        order = mixed_order(self.job.loaded.calibration)
        self.images = [self.job.loaded.calibration[order[run * count : (run + 1) * count]] for run in range(runs)]
        loaded, val = self.job.loaded, self.job.loaded.validation
        parts = [slice(run, None, PARTS) for run in range(runs)]
        self.judges = [
            Judge.of(
                loaded.network,
                loaded.task,
                loaded.likelihood,
                Split.of(val.stored[part], val.targets[part], val.normalization),
            )
            for part in parts
        ]

    def config(self, bits: str) -> BitConfig:
        """What `as_bits` wrote."""
        return BitConfig(self.job.table.names, tuple(Precision(int(w)) for w in bits))

    def finish(self, bits: str, seed: int) -> Found:
        """What a user gets."""
        job = self.job
        layers = reconstruct(job.loaded.network, job.loaded.calibration, self.config(bits), Settings(seed=seed)).layers
        return job.loaded.judge.measure(quantized(job.loaded.network, layers).model)

    def __call__(self, bits: str, run: int) -> Found:
        job, images = self.job, self.images[run]
        config = self.config(bits)
        settings = Settings(steps=0, seed=run)
        layers = {
            "plain": plainly_rounded(job.loaded.network, images, config),
            "finalized": reconstruct(job.loaded.network, images, config, settings).layers,
        }
        found: Found = {}
        for state, made in layers.items():
            result = self.judges[run].measure(quantized(job.loaded.network, made).model)
            found[f"kl_{state}"], found[f"top1_{state}"] = result["kl"], result["top1"]
        return found


_measurer: Measurer


def _begin(network: str) -> None:
    global _measurer
    _measurer = Measurer(network)


def _measure(what: tuple[str, int]) -> tuple[str, Found]:
    return what[0], _measurer(*what)


def _finish(what: tuple[str, int]) -> tuple[str, Found]:
    return what[0], _measurer.finish(*what)


def near(problem: BitProblem, genome: Genomes, budget: float, rng: np.random.Generator) -> Genomes:
    """A genome a few random steps from `genome`, its file within 2 % below the budget."""
    while True:
        other = genome.copy()
        moved = rng.choice(len(genome), rng.integers(2, max(4, len(genome) // 4)), replace=False)
        other[moved] = np.clip(other[moved] + rng.choice([-1, 1], len(moved)), 0, problem.sizes[moved] - 1)
        if 0.98 * budget < problem.values(other[None])[0, 1] <= budget:
            return other


def drawn(problem: BitProblem, known: list[Predictor], budget: float) -> tuple[list[Genomes | None], Genomes]:
    """What each predictor picks, and all configurations to measure: those picks and neighbours of them."""
    rng = np.random.default_rng(0)
    picks = [predictor.best(problem) for predictor in known]
    centres = [pick for pick in picks if pick is not None]
    genomes = np.unique(np.array(centres), axis=0)
    while len(genomes) < CONFIGS:
        others = [near(problem, centre, budget, rng) for centre in centres]
        genomes = np.unique(np.concatenate([genomes, others]), axis=0)
    return picks, genomes


def ranking(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> dict[str, Any]:
    """Kendall's τ and Spearman's ρ with 95 % bootstrap intervals over the configurations."""
    rng = np.random.default_rng(0)
    taus, rhos = [], []
    for _ in range(RESAMPLED):
        pick = rng.integers(0, len(measured), len(measured))
        taus.append(kendalltau(predicted[pick], measured[pick])[0])
        rhos.append(spearmanr(predicted[pick], measured[pick])[0])
    return {
        "tau": float(kendalltau(predicted, measured)[0]),
        "tau_interval": np.nanpercentile(taus, [2.5, 97.5]).tolist(),
        "rho": float(spearmanr(predicted, measured)[0]),
        "rho_interval": np.nanpercentile(rhos, [2.5, 97.5]).tolist(),
    }


def as_bits(job: Run, genome: Genomes) -> str:
    """One digit a layer."""
    return "".join(str(job.candidates.precisions[choice].w) for choice in genome)


def study(network: str, results: dict[str, Any]) -> None:
    """Everything about one network; `results` are kept after every configuration."""
    job = start(network)
    known = predictors(job)
    free = SensitivityTable.unmeasured(job.table.names, job.candidates.precisions)
    kept, finished = (results[key].setdefault(network, {}) for key in ("measured", "finished"))
    todo: list[tuple[int, BitProblem, list[Genomes | None], Genomes]] = []
    for budget in BUDGETS[network]:
        problem = build_problem(job.table, job.costs, free, budgets={"size_bytes": float(budget)})
        todo.append((budget, problem, *drawn(problem, known, budget)))
    drawn_bits = list(dict.fromkeys(as_bits(job, genome) for *_, genomes in todo for genome in genomes))
    picked = list(dict.fromkeys(as_bits(job, pick) for *_, picks, _ in todo for pick in picks if pick is not None))
    context = multiprocessing.get_context("spawn")
    with context.Pool(WORKERS, _begin, (network,)) as pool:
        for measure, of, into, runs in (
            (_measure, drawn_bits, kept, FINALIZED[network][1]),
            (_finish, picked, finished, SEEDS[network]),
        ):
            missing = [(bits, run) for run in range(runs) for bits in of if run >= len(into.get(bits, ()))]
            for bits, found in pool.imap(measure, missing):
                into.setdefault(bits, []).append(found)
                save(results)
                print(f"{network} {sum(map(len, into.values()))} measured, the last: {found}", file=sys.stderr)
    for budget, problem, picks, genomes in todo:
        results["rows"][f"{network} {budget}"] = compare(job, problem, known, picks, genomes, kept, finished)
        save(results)


def compare(
    job: Run,
    problem: BitProblem,
    known: list[Predictor],
    picks: list[Genomes | None],
    genomes: Genomes,
    kept: dict[str, list[Found]],
    finished: dict[str, list[Found]],
) -> dict[str, Any]:
    """How well each predictor ranks what was measured, the mean of the runs, and what became of its pick."""
    runs = {bits: kept[bits] for bits in (as_bits(job, genome) for genome in genomes)}
    means = {bits: {key: float(np.mean([run[key] for run in of])) for key in of[0]} for bits, of in runs.items()}
    found = list(means.values())
    rows = []
    for predictor, pick in zip(known, picks, strict=True):
        predicted = predictor.loss(problem, genomes)
        row: dict[str, Any] = {"predictor": predictor.name}
        for state in ("plain", "finalized"):
            row[state] = ranking(predicted, np.array([one[f"kl_{state}"] for one in found]))
        row["predicted"] = [float(f"{value:.5g}") for value in predicted]
        if pick is not None:
            row["pick"] = as_bits(job, pick)
            row["finished"] = finished[row["pick"]]
        rows.append(row)
    finalized = np.array([[run["kl_finalized"] for run in of] for of in runs.values()])
    agreement = {"agreement": agreed(finalized)} if finalized.shape[1] > 1 else {}
    return {"configurations": list(runs), **agreement, "predictors": rows}


def agreed(measured: NDArray[np.float64]) -> dict[str, float]:
    """How far two runs (n, 2) agree: Kendall's τ, and the τ with their mean of what they have in common.

    For normal variables τ = 2/π · asin r (Greiner, 1909); the mean of two runs that correlate by r correlates by
    √(2r / (1 + r)) with what they have in common (Spearman and Brown, 1910).
    """
    tau = float(kendalltau(*measured.T)[0])
    r = max(np.sin(np.pi / 2 * tau), 0.0)
    return {"tau": tau, "ceiling": float(2 / np.pi * np.arcsin(np.sqrt(2 * r / (1 + r))))}


def save(results: dict[str, Any]) -> None:
    """Writes the results in one step."""
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    temporary.replace(RESULTS)


def table(row: dict[str, Any]) -> str:
    """A budget's figures, in Markdown: a line a predictor."""
    lines = ["| predictor | τ plain | τ finalized | ρ finalized | its pick: KL | top-1 |", "|---|---|---|---|---|---|"]
    for one in row["predictors"]:
        plain, done = one["plain"], one["finalized"]
        low, high = done["tau_interval"]
        pick = became(one["finished"]) if "pick" in one else "|"
        ranks = f"{plain['tau']:.2f} | {done['tau']:.2f} ({low:.2f} to {high:.2f}) | {done['rho']:.2f}"
        lines.append(f"| {one['predictor']} | {ranks} | {pick} |")
    return "\n".join(lines)


def became(finished: list[Found]) -> str:
    """Divergence and top-1 of a finished pick: means, and the divergence's range where there are several seeds."""
    kl, top1 = ([one[key] for one in finished] for key in ("kl", "top1"))
    spread = f" ({min(kl):.4f} to {max(kl):.4f})" if len(kl) > 1 else ""
    return f"{np.mean(kl):.4f}{spread} | {np.mean(top1):.2f} %"


def page(results: dict[str, Any]) -> str:
    """All tables, each under its network and budget."""
    names = [f"{network} {budget}" for network, budgets in BUDGETS.items() for budget in budgets]
    parts = []
    for name in names:
        if name in results["rows"]:
            row = results["rows"][name]
            title = f"{name} bytes, {len(row['configurations'])} configurations"
            if "agreement" in row:
                tau, ceiling = row["agreement"]["tau"], row["agreement"]["ceiling"]
                title += f"; two runs agree by τ {tau:.2f}"
                title += f", so that {ceiling:.2f} is the most to be had" if tau > 0 else ": their order is chance"
            parts.append(f"{title}:\n\n{table(row)}")
    return "\n\n".join(parts)


def main(words: list[str]) -> None:
    """Measures what is missing, prints tables, writes the results."""
    old = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    results = {"rows": {}, "measured": {}, "finished": {}, **old, "machine": machine(), "versions": versions()}
    for network in words or list(BUDGETS):
        study(network, results)
    print(page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
