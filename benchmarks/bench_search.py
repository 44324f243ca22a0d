"""The search against the truth: speed, exact fronts, exact answers, a lower bound, random search, a large network.

    python benchmarks/bench_search.py RUN

RUN is a run folder of MobileNetV2 on ImageNet (its layers, costs and sensitivity cache are read, nothing is measured);
synthetic networks come from tests/mpsearch/synthetic.py. Prints tables and writes benchmarks/results/bench_search.json.
Losses are in nats, times in seconds; `cpu_seconds` is what the process used, on a machine that it may share.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pymoo
import scipy

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "mpsearch")]

from machine import machine
from synthetic import at_fraction, network, problem

from mpsearch.files.folder import RunFolder
from mpsearch.optimization.baselines import answers, exact_additive, greedy
from mpsearch.optimization.box import hypervolume
from mpsearch.optimization.build import build_problem, with_budgets
from mpsearch.optimization.front import ParetoFront, non_dominated
from mpsearch.optimization.knapsack import exact_front
from mpsearch.optimization.local import local_search
from mpsearch.optimization.nsga2 import search
from mpsearch.optimization.problem import BitProblem, Genomes
from mpsearch.optimization.proof import branch_and_bound, lower_bound
from mpsearch.optimization.settings import SearchSettings
from mpsearch.run.artifacts import read_costs, read_layers
from mpsearch.run.memory import peak_rss_bytes
from mpsearch.sensitivity.cache import load_table

SEEDS = range(10)
FRACTIONS = (0.1, 0.3, 0.6)
BUDGETS = (1.1e6, 1.5e6, 2.0e6)
FREE = 12


class Real:
    """Problems of a run folder's network."""

    def __init__(self, path: Path) -> None:
        folder = RunFolder(path)
        self.table, (self.costs, self.allowed) = read_layers(folder), read_costs(folder)
        self.sensitivity = load_table(folder.file("sensitivity.safetensors"))

    def problem(self, additive: bool = False, free: Sequence[str] | None = None, bits: int = 4) -> BitProblem:
        """All layers are searched, or only those in `free`, the others held at `bits`."""
        allowed = dict(self.allowed)
        if free is not None:
            held = next(p for p in self.costs.precisions if p.w == bits)
            allowed |= {name: (held,) for name in self.table.names if name not in free}
        sensitivity = self.sensitivity.additive() if additive else self.sensitivity
        return build_problem(self.table, self.costs, sensitivity, allowed)


def evaluation_rate() -> dict[str, float]:
    """Configurations per second, all pair terms included, beside the plain loop over layers and pairs."""
    built = problem()
    sensitivity = network()[2]
    genomes = np.random.default_rng(0).integers(0, built.sizes, (200_000, len(built.genes))).astype(np.int16)
    built.values(genomes[:1000])
    rates = []
    for _ in range(5):
        begin = time.perf_counter()
        values = built.values(genomes)
        rates.append(len(genomes) / (time.perf_counter() - begin))
    choices = built.layer_choices(genomes[:50])
    begin = time.perf_counter()
    loop = np.array([_plain_loss(sensitivity.intra, sensitivity.inter, choice) for choice in choices])
    loop_rate = len(loop) / (time.perf_counter() - begin)
    return {
        "configs_per_second": max(rates),
        "configs_per_second_median": float(np.median(rates)),
        "plain_loop_configs_per_second": loop_rate,
        "largest_relative_difference": float(np.abs(values[: len(loop), 0] / loop - 1).max()),
    }


def _plain_loss(intra: Any, inter: Any, choice: Any) -> float:
    n_layers, n_choices = intra.shape
    loss = 0.0
    for layer in range(n_layers):
        loss += intra[layer, choice[layer]]
        for other in range(layer + 1, n_layers):
            loss += 2 * inter[layer * n_choices + choice[layer], other * n_choices + choice[other]]
    return loss


def timed_search(built: BitProblem, settings: SearchSettings) -> tuple[ParetoFront, float, float]:
    """The front, wall seconds and processor seconds."""
    begin, used = time.perf_counter(), time.process_time()
    front = search(built, settings)
    return front, time.perf_counter() - begin, time.process_time() - used


def additive(network: str, built: BitProblem, seed: int) -> dict[str, Any]:
    """Front quality where the exact front is known; `evolution_*` is NSGA-II alone, before its front is filled."""
    exact = exact_front(built)[1]
    truth = hypervolume(built, exact)
    front, seconds, used = timed_search(built, SearchSettings(seed=seed))
    evolution, evolution_seconds, _ = timed_search(built, SearchSettings(seed=seed, neighbours=0))
    sizes = np.unique(np.concatenate([exact[:, 1], np.linspace(exact[0, 1], exact[-1, 1], 5000)]))
    best = _staircase(exact, sizes)
    gap, evolution_gap = (_staircase(points.objectives, sizes) / best - 1 for points in (front, evolution))
    checked = []
    for fraction in np.linspace(0.02, 0.98, 25 if seed == 0 else 3):
        tight = at_fraction(built, fraction)
        milp = tight.values(exact_additive(tight)[None])[0, 0]  # type: ignore[index]
        checked.append(float(milp / _staircase(exact, dict(tight.budgets)["size_bytes"]) - 1))
    return {
        "network": network,
        "seed": seed,
        "exact_points": len(exact),
        "points": len(front),
        "evaluations": front.evaluations,
        "generations": len(front.hypervolume) - 1,
        "seconds": seconds,
        "cpu_seconds": used,
        "hypervolume_share": hypervolume(built, front.objectives) / truth,
        "largest_loss_gap": float(gap.max()),
        "evolution_evaluations": evolution.evaluations,
        "evolution_seconds": evolution_seconds,
        "evolution_hypervolume_share": hypervolume(built, evolution.objectives) / truth,
        "evolution_largest_loss_gap": float(evolution_gap.max()),
        "milp_budgets": len(checked),
        "milp_against_dynamic_programming": max(map(abs, checked)),
    }


def _staircase(front: Any, sizes: Any) -> Any:
    return front[np.searchsorted(front[:, 1], sizes, side="right") - 1, 0]


def small(network: str, built: BitProblem, seed: int) -> dict[str, Any]:
    """The search's answer against the exact one of branch and bound, interactions included."""
    begin = time.process_time()
    exact = branch_and_bound(built)
    used = time.process_time() - begin
    truth = float(built.values(exact[None])[0, 0])  # type: ignore[index]
    front = search(built, SearchSettings(seed=seed))
    found = float(front.objectives[front.best(), 0])
    return {
        "network": network,
        "seed": seed,
        "free_layers": int((built.sizes > 1).sum()),
        "exact": truth,
        "exact_cpu_seconds": used,
        "found_over_exact": found / truth - 1,
        "bound_gap": 1 - lower_bound(built) / truth,
    }


def quadratic(network: str, front: ParetoFront, tight: BitProblem, seed: int, bound: float) -> dict[str, Any]:
    """Losses at a budget, interactions included."""
    rows = {row.name: row.loss for row in answers(tight) if row.feasible}
    starts = [greedy(tight), exact_additive(tight)]
    polished = [float(tight.values(local_search(tight, start)[None])[0, 0]) for start in starts if start is not None]
    found = float(front.objectives[front.best(dict(tight.budgets)), 0])
    return {
        "network": network,
        "seed": seed,
        "size_budget_bytes": dict(tight.budgets)["size_bytes"],
        "found": found,
        "best_uniform": min((loss for name, loss in rows.items() if name.startswith("uniform")), default=float("nan")),
        "greedy": rows["greedy"],
        "exact_additive": rows["exact additive"],
        "greedy_local_search": polished[0],
        "exact_additive_local_search": polished[1],
        "lower_bound": bound,
        "gap_to_bound": 1 - bound / found,
    }


def random_search(built: BitProblem, evaluations: int) -> dict[str, float]:
    """Uniform random configurations, as many as the search looked at, on an additive problem."""
    rng = np.random.default_rng(0)
    kept: Genomes = np.zeros((0, len(built.genes)), np.int16)
    exact = exact_front(built)[1]
    for begin in range(0, evaluations, 100_000):
        count = min(100_000, evaluations - begin)
        kept = np.concatenate([kept, rng.integers(0, built.sizes, (count, len(built.genes))).astype(np.int16)])
        kept = kept[non_dominated(built.evaluate(kept))]
    points = built.evaluate(kept)
    sizes = exact[(exact[:, 1] >= points[0, 1]) & (exact[:, 1] <= points[-1, 1]), 1]
    gap = _staircase(points, sizes) / _staircase(exact, sizes) - 1
    share = hypervolume(built, points) / hypervolume(built, exact)
    return {"evaluations": evaluations, "hypervolume_share": share, "median_loss_gap": float(np.median(gap))}


def large() -> dict[str, float]:
    """500 layers, 7 candidates, all interactions; the memory is the whole process's peak."""
    begin = time.perf_counter()
    built = at_fraction(problem(500, (2, 3, 4, 5, 6, 7, 8)), 0.35)
    build_seconds = time.perf_counter() - begin
    front, seconds, used = timed_search(built, SearchSettings())
    rows = {row.name: row.loss for row in answers(built) if row.feasible}
    return {
        "build_seconds": build_seconds,
        "search_seconds": seconds,
        "search_cpu_seconds": used,
        "generations": len(front.hypervolume) - 1,
        "points": len(front),
        "found": float(front.objectives[front.best(), 0]),
        "greedy": rows["greedy"],
        "exact_additive": rows["exact additive"],
        "peak_rss_bytes": peak_rss_bytes(),
    }


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    real = Real(Path(sys.argv[1]))
    results: dict[str, Any] = {
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "pymoo": pymoo.__version__,
        },
        "large": large(),
        "evaluation": evaluation_rate(),
    }
    print(json.dumps(results, indent=1), flush=True)
    both = (("MobileNetV2", real.problem(additive=True)), ("synthetic", problem(additive=True)))
    results["additive"] = [additive(name, built, seed) for name, built in both for seed in SEEDS]
    table(results["additive"], ("network", "seed", "seconds", "hypervolume_share", "largest_loss_gap",
                                "evolution_hypervolume_share", "milp_against_dynamic_programming"))  # fmt: skip
    results["random_search"] = random_search(real.problem(additive=True), results["additive"][0]["evaluations"])
    results["evolution_alone"] = evolution_alone(real.problem(additive=True), results["additive"][0]["evaluations"])
    table([results["random_search"], results["evolution_alone"]], tuple(results["random_search"]))
    results["small"] = []
    for seed in SEEDS:
        free = np.random.default_rng(seed).choice(real.table.names[1:], FREE, replace=False).tolist()
        fraction = FRACTIONS[seed % 3]
        results["small"] += [
            small("MobileNetV2", at_fraction(real.problem(free=free), fraction), seed),
            small("synthetic", at_fraction(problem(FREE + 2, seed=seed), fraction), seed),
        ]
    table(results["small"], ("network", "seed", "exact", "found_over_exact", "exact_cpu_seconds", "bound_gap"))
    results["quadratic"] = []
    bounds: dict[float, float] = {}  # MobileNetV2's, the same for all seeds
    for seed in SEEDS:
        for name, built, limits in (
            ("MobileNetV2", real.problem(), BUDGETS),
            ("synthetic", problem(seed=seed), [dict(at_fraction(problem(seed=seed), f).budgets)["size_bytes"]
                                               for f in FRACTIONS]),
        ):  # fmt: skip
            for limit in limits:
                tight = with_budgets(built, {"size_bytes": limit})
                front = search(tight, SearchSettings(seed=seed))
                bound = bounds[limit] if limit in bounds else lower_bound(tight)
                if name == "MobileNetV2":
                    bounds[limit] = bound
                results["quadratic"].append(quadratic(name, front, tight, seed, bound))
                print(name, limit, seed, results["quadratic"][-1]["gap_to_bound"], flush=True)
    table(results["quadratic"], tuple(results["quadratic"][0]))
    results["worst"] = worst(results)
    print(json.dumps(results["worst"], indent=1))
    path = ROOT / "benchmarks" / "results" / "bench_search.json"
    path.write_text(json.dumps(results, indent=1) + "\n")


def evolution_alone(built: BitProblem, evaluations: int) -> dict[str, float]:
    """NSGA-II alone, its front not filled, on `evaluations` or, where these are more, on 1,000 generations."""
    exact = exact_front(built)[1]
    generations = min(1000, evaluations // 200)
    front = search(built, SearchSettings(generations=generations, patience=generations, neighbours=0))
    gap = _staircase(front.objectives, exact[:, 1]) / exact[:, 0] - 1
    share = hypervolume(built, front.objectives) / hypervolume(built, exact)
    return {"evaluations": front.evaluations, "hypervolume_share": share, "median_loss_gap": float(np.median(gap))}


def worst(results: dict[str, Any]) -> dict[str, float]:
    """The worst case over all seeds."""
    plain = ("best_uniform", "greedy", "exact_additive", "greedy_local_search", "exact_additive_local_search")
    runs, points = results["additive"], results["quadratic"]
    real = [point for point in points if point["network"] == "MobileNetV2"]
    return {
        "seconds": max(run["seconds"] for run in runs),
        "cpu_seconds": max(run["cpu_seconds"] for run in runs),
        "hypervolume_share": min(run["hypervolume_share"] for run in runs),
        "largest_loss_gap": max(run["largest_loss_gap"] for run in runs),
        "evolution_hypervolume_share": min(run["evolution_hypervolume_share"] for run in runs),
        "found_over_exact_small": max(run["found_over_exact"] for run in results["small"]),
        "found_over_best_plain": max(point["found"] / np.nanmin([point[name] for name in plain]) for point in points),
        "gap_to_bound_mobilenetv2": max(point["gap_to_bound"] for point in real),
        "gap_to_bound": max(point["gap_to_bound"] for point in points),
    }


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    print("  ".join(columns))
    for row in rows:
        texts = [f"{row[name]:.6g}" if isinstance(row[name], float) else str(row[name]) for name in columns]
        print("  ".join(text.rjust(len(name)) for text, name in zip(texts, columns, strict=True)), flush=True)


if __name__ == "__main__":
    main()
