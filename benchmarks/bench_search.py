"""The search against the truth: speed, exact fronts, local search, a lower bound, random search, a large network.

    python benchmarks/bench_search.py

Synthetic networks (tests/mpsearch/synthetic.py); writes benchmarks/results/bench_search.json. Losses are in nats.
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pymoo
import scipy

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "mpsearch")]

from machine import machine  # noqa: E402
from synthetic import at_fraction, network, problem  # noqa: E402

from mpsearch.exact import answers, exact_additive, exact_front, greedy, local_search, lower_bound  # noqa: E402
from mpsearch.front import ParetoFront, non_dominated  # noqa: E402
from mpsearch.problem import BitProblem, Genomes  # noqa: E402
from mpsearch.search import SearchSettings, hypervolume, search  # noqa: E402

SEEDS = range(10)
FRACTIONS = (0.1, 0.3, 0.6)


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


def timed_search(built: BitProblem, settings: SearchSettings) -> tuple[ParetoFront, float]:
    begin = time.perf_counter()
    front = search(built, settings)
    return front, time.perf_counter() - begin


def additive(seed: int) -> dict[str, float]:
    """Front quality where the exact front is known; `evolution_*` is NSGA-II without the local filling."""
    built = problem(seed=seed, additive=True)
    exact = exact_front(built)[1]
    truth = hypervolume(built, exact)
    front, seconds = timed_search(built, SearchSettings(seed=seed))
    evolution, evolution_seconds = timed_search(built, SearchSettings(seed=seed, neighbours=0))
    sizes = np.linspace(exact[0, 1], exact[-1, 1], 5000)
    gap = _staircase(front.objectives, sizes) / _staircase(exact, sizes) - 1
    tight = at_fraction(built, 0.3)
    milp = tight.values(exact_additive(tight)[None])[0]  # type: ignore[index]
    return {
        "seed": seed,
        "exact_points": len(exact),
        "points": len(front),
        "evaluations": front.evaluations,
        "generations": len(front.hypervolume) - 1,
        "seconds": seconds,
        "hypervolume_share": hypervolume(built, front.objectives) / truth,
        "largest_loss_gap": float(gap.max()),
        "mean_loss_gap": float(gap.mean()),
        "evolution_seconds": evolution_seconds,
        "evolution_hypervolume_share": hypervolume(built, evolution.objectives) / truth,
        "milp_against_dynamic_programming": float(milp[0] / _staircase(exact, dict(tight.budgets)["size_bytes"]) - 1),
    }


def _staircase(front: Any, sizes: Any) -> Any:
    return front[np.searchsorted(front[:, 1], sizes, side="right") - 1, 0]


def quadratic(seed: int, fraction: float) -> dict[str, float]:
    """Losses at a budget, interactions included."""
    built = at_fraction(problem(seed=seed), fraction)
    front, seconds = timed_search(built, SearchSettings(seed=seed))
    rows = {row.name: row.loss for row in answers(built) if row.feasible}
    starts = [greedy(built), exact_additive(built)]
    polished = [float(built.values(local_search(built, start)[None])[0, 0]) for start in starts if start is not None]
    found = float(front.objectives[front.best(), 0])
    bound = lower_bound(built)
    return {
        "seed": seed,
        "fraction": fraction,
        "seconds": seconds,
        "found": found,
        "best_uniform": min((loss for name, loss in rows.items() if name.startswith("uniform")), default=float("nan")),
        "greedy": rows["greedy"],
        "exact_additive": rows["exact additive"],
        "greedy_local_search": polished[0],
        "exact_additive_local_search": polished[1],
        "lower_bound": bound,
        "gap_to_bound": 1 - bound / found,
    }


def random_search(evaluations: int) -> dict[str, float]:
    """Uniform random configurations, as many as the search looked at, on the additive problem of seed 0."""
    built = problem(additive=True)
    rng = np.random.default_rng(0)
    kept: Genomes = np.zeros((0, len(built.genes)), np.int16)
    for begin in range(0, evaluations, 100_000):
        count = min(100_000, evaluations - begin)
        kept = np.concatenate([kept, rng.integers(0, built.sizes, (count, len(built.genes))).astype(np.int16)])
        kept = kept[non_dominated(built.evaluate(kept))]
    share = hypervolume(built, built.evaluate(kept)) / hypervolume(built, exact_front(built)[1])
    return {"evaluations": evaluations, "hypervolume_share": share}


def large() -> dict[str, float]:
    """500 layers, 7 candidates, all interactions; the memory is the whole process's peak."""
    begin = time.perf_counter()
    built = at_fraction(problem(500, (2, 3, 4, 5, 6, 7, 8)), 0.35)
    build_seconds = time.perf_counter() - begin
    front, seconds = timed_search(built, SearchSettings())
    rows = {row.name: row.loss for row in answers(built) if row.feasible}
    return {
        "build_seconds": build_seconds,
        "search_seconds": seconds,
        "generations": len(front.hypervolume) - 1,
        "points": len(front),
        "found": float(front.objectives[front.best(), 0]),
        "greedy": rows["greedy"],
        "exact_additive": rows["exact additive"],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
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
    results["additive"] = [additive(seed) for seed in SEEDS]
    results["quadratic"] = [quadratic(seed, FRACTIONS[seed % 3]) for seed in SEEDS]
    results["random_search"] = random_search(results["additive"][0]["evaluations"])
    runs, points = results["additive"], results["quadratic"]
    plain = ("best_uniform", "greedy", "exact_additive", "greedy_local_search", "exact_additive_local_search")
    results["worst"] = {
        "seconds": max(run["seconds"] for run in runs),
        "hypervolume_share": min(run["hypervolume_share"] for run in runs),
        "largest_loss_gap": max(run["largest_loss_gap"] for run in runs),
        "evolution_hypervolume_share": min(run["evolution_hypervolume_share"] for run in runs),
        "found_over_best_plain": max(point["found"] / np.nanmin([point[name] for name in plain]) for point in points),
        "gap_to_bound": max(point["gap_to_bound"] for point in points),
        "median_gap_to_bound": float(np.median([point["gap_to_bound"] for point in points])),
    }
    print(json.dumps({key: results[key] for key in ("random_search", "worst")}, indent=1))
    path = ROOT / "benchmarks" / "results" / "bench_search.json"
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
