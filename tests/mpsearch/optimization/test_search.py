"""The search against exact fronts, exhaustive answers and itself."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import at_fraction, problem

from hwmodel.errors import InputError
from mpsearch.optimization.baselines import exact_additive, greedy, uniform
from mpsearch.optimization.box import hypervolume
from mpsearch.optimization.build import with_budgets
from mpsearch.optimization.front import ParetoFront
from mpsearch.optimization.knapsack import exact_front
from mpsearch.optimization.local import local_search
from mpsearch.optimization.nsga2 import best_at_budget, course, search
from mpsearch.optimization.proof import brute_force, brute_force_front
from mpsearch.optimization.refine import fill_by_tangents
from mpsearch.optimization.settings import SearchSettings

QUICK = SearchSettings(population=60, generations=25, neighbours=1_000_000)


def staircase(front, sizes):
    """The least loss within each size."""
    return front[np.searchsorted(front[:, 1], sizes, side="right") - 1, 0]


def test_additive_front_against_the_exact_one():
    built = problem(20, additive=True)
    exact = exact_front(built)[1]
    found = search(built, QUICK)
    assert hypervolume(built, found.objectives) >= 0.999 * hypervolume(built, exact)
    sizes = np.linspace(exact[0, 1], exact[-1, 1], 1000)
    assert (staircase(found.objectives, sizes) <= 1.005 * staircase(exact, sizes)).all()


def test_with_interactions_the_whole_front_is_near_the_truth():
    built = problem(9, seed=2)
    truth = built.evaluate(brute_force_front(built))
    found = search(built, QUICK)
    assert hypervolume(built, found.objectives) >= 0.9999 * hypervolume(built, truth)


def test_linearized_fronts_fill_what_the_evolution_left_open():
    built = problem(40)
    left = search(built, replace(QUICK, neighbours=0))
    filled, seen = fill_by_tangents(built, built.genomes(left.choices))
    assert seen > 1000
    assert len(filled) > 2 * len(left)
    assert hypervolume(built, built.evaluate(filled)) > hypervolume(built, left.objectives)


def test_a_large_network_in_small():
    """500 layers and 7 candidates take minutes (benchmarks/bench_search.py); the same path on 90."""
    built = at_fraction(problem(90, (2, 3, 4, 5, 6, 7, 8)), 0.35)
    found = search(built, replace(QUICK, generations=3, neighbours=50_000))
    plain = [greedy(built), exact_additive(built)]
    assert found.objectives[found.best(), 0] <= built.values(np.array(plain))[:, 0].min()


@pytest.mark.parametrize("seed", range(3))
def test_small_quadratic_problems_are_solved(seed):
    for fraction in (0.1, 0.4, 0.8):
        built = at_fraction(problem(8, seed=seed), fraction)
        found = search(built, QUICK)
        truth = built.values(brute_force(built)[None])[0, 0]
        assert found.objectives[found.best(), 0] == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_never_worse_than_the_plain_answers(seed):
    built = at_fraction(problem(seed=seed), 0.35)
    found = search(built, replace(QUICK, seed=seed))
    best = found.objectives[found.best(), 0]
    plain = [greedy(built), exact_additive(built), *(genome for _, genome in uniform(built))]
    plain = [genome for genome in plain if built.feasible(genome[None])[0]]
    plain += [local_search(built, plain[0]), local_search(built, plain[1])]
    assert best <= built.values(np.array(plain))[:, 0].min()


def test_the_front_spans_from_the_smallest_to_the_largest_and_is_consistent():
    built = at_fraction(problem(), 0.3)
    found = search(built, QUICK)
    ends = built.evaluate(np.stack([built.sizes * 0, built.sizes - 1]).astype(np.int16))
    assert found.objectives[0, 1] == ends[0, 1]
    assert found.objectives[-1, 0] <= ends[1, 0]
    assert (np.diff(found.objectives, axis=0) * [-1, 1] > 0).all()
    np.testing.assert_array_equal(built.evaluate(built.genomes(found.choices)), found.objectives)
    assert (np.diff(found.hypervolume) >= 0).all()


def test_budgets_on_other_costs_hold_everywhere():
    built = problem()
    ends = built.values(np.stack([built.sizes * 0, built.sizes - 1]).astype(np.int16))
    limits = {"size_bytes": ends[:, 1] @ [0.6, 0.4], "bops": ends[:, 3] @ [0.7, 0.3]}
    built = with_budgets(built, limits)
    found = search(built, QUICK)
    values = built.values(built.genomes(found.choices))
    assert (values[:, 3] <= limits["bops"]).all()
    assert values[:, 1].max() > limits["size_bytes"]
    best = built.values(local_search(built, exact_additive(built))[None])[0, 0]
    assert found.objectives[found.best(), 0] <= best


def test_three_objectives():
    built = problem(12, objectives=("loss", "size_bytes", "bops"))
    found = search(built, QUICK)
    two = search(problem(12), QUICK)
    assert found.objectives.shape[1] == 3
    sizes = two.objectives[:, 1]
    within = [found.objectives[found.objectives[:, 1] <= size, 0].min() for size in sizes]
    assert np.median(np.array(within) / two.objectives[:, 0]) < 1.1


def test_same_seed_same_bytes_other_seed_other_course():
    built = at_fraction(problem(16), 0.4)
    first, again, other = (search(built, replace(QUICK, seed=seed)).to_json() for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert ParetoFront.from_json(first).to_json() == first


KILLED = """
import os, signal, sys
from pathlib import Path
from dataclasses import replace
from synthetic import at_fraction, problem
from test_search import QUICK
from mpsearch.optimization.nsga2 import search

stop_at = int(sys.argv[2])
def kill(progress):
    if progress.generation == stop_at:
        os.kill(os.getpid(), signal.SIGKILL)
built = at_fraction(problem(16), 0.4)
Path(sys.argv[3]).write_text(search(built, QUICK, Path(sys.argv[1]), kill).to_json())
"""


def test_a_process_killed_at_several_generations_ends_with_the_same_bytes(tmp_path):
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent, here.parents[2])))}
    checkpoint, out = tmp_path / "search.npz", tmp_path / "front.json"
    for stop_at, code in ((1, -9), (7, -9), (18, -9), (1000, 0)):
        command = [sys.executable, "-c", KILLED, str(checkpoint), str(stop_at), str(out)]
        assert subprocess.run(command, env=environment, check=False).returncode == code
        assert checkpoint.exists() == (code != 0)
    assert out.read_text() == search(at_fraction(problem(16), 0.4), QUICK).to_json()


@pytest.mark.parametrize("stop_at", [1, 2, 13, 24])
@pytest.mark.parametrize("constrained", [False, True])
def test_a_killed_search_goes_on_bit_for_bit(tmp_path, stop_at, constrained):
    built = at_fraction(problem(16), 0.4)
    if constrained:
        ends = built.values(np.stack([built.sizes * 0, built.sizes - 1]).astype(np.int16))
        built = with_budgets(built, {"bops": ends[:, 3] @ [0.8, 0.2]})
    checkpoint = tmp_path / "search.npz"

    def kill(progress):
        if progress.generation == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(built, QUICK, checkpoint, kill)
    generations = []
    resumed = search(built, QUICK, checkpoint, lambda progress: generations.append(progress.generation))
    assert generations == list(range(stop_at + 1, len(resumed.hypervolume)))
    assert resumed.to_json() == search(built, QUICK).to_json()
    assert not checkpoint.exists()


def test_checkpoints_of_other_searches_and_damaged_ones_are_refused(tmp_path):
    checkpoint = tmp_path / "search.npz"

    def kill(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(problem(8), QUICK, checkpoint, kill)
    with pytest.raises(InputError, match="another search"):
        search(problem(8), replace(QUICK, seed=1), checkpoint)
    with pytest.raises(InputError, match="another search"):
        search(problem(8, seed=1), QUICK, checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(InputError, match="delete it"):
        search(problem(8), QUICK, checkpoint)


def test_it_stops_when_the_hypervolume_no_longer_moves_and_when_all_is_seen():
    found = search(problem(10), SearchSettings(population=40, generations=500, patience=10, neighbours=100_000))
    assert len(found.hypervolume) < 400
    assert "no longer moved" in course(found.hypervolume, SearchSettings(generations=500))
    tiny = problem(3, (2, 8))
    assert len(search(tiny, SearchSettings(population=40, generations=50))) <= 2


def test_no_candidate_to_choose_is_a_front_of_one_point():
    found = search(problem(5, (4,)), SearchSettings(population=8, generations=5))
    assert len(found) == 1


def test_best_at_another_budget():
    built = problem()
    found = search(built, QUICK)
    tight = at_fraction(built, 0.25)
    best = best_at_budget(tight, built.genomes(found.choices))
    limit = dict(tight.budgets)["size_bytes"]
    values = tight.values(best[None])[0]
    assert values[1] <= limit
    assert values[0] <= found.objectives[found.best({"size_bytes": limit}), 0]


def test_it_is_silent(capfd):
    search(at_fraction(problem(8), 0.4), QUICK)
    captured = capfd.readouterr()
    assert captured.out == ""


def test_settings_are_checked():
    with pytest.raises(InputError, match="population"):
        SearchSettings(population=1)
