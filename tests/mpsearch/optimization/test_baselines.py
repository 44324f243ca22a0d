"""Exact answers against exhaustive enumeration, in both directions."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from synthetic import at_fraction, problem

from hwmodel.errors import InputError
from mpsearch.optimization.baselines import answers, exact_additive, greedy, hull, uniform
from mpsearch.optimization.build import with_budgets
from mpsearch.optimization.knapsack import exact_front, knapsack_front
from mpsearch.optimization.local import local_search
from mpsearch.optimization.proof import branch_and_bound, brute_force, brute_force_front, lower_bound

FRACTIONS = (0.02, 0.2, 0.45, 0.8, 1.0)


def small(seed, fraction, additive):
    return at_fraction(problem(8, (2, 3, 4, 6, 8), seed, additive), fraction)


def loss(built, genome):
    return built.values(genome[None])[0, 0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_milp_is_the_best_of_all_where_losses_add_up(seed, fraction):
    built = small(seed, fraction, additive=True)
    genome = exact_additive(built)
    assert built.feasible(genome[None])[0]
    assert loss(built, genome) == pytest.approx(loss(built, brute_force(built)), rel=1e-9)


def test_milp_is_exact_over_many_decades():
    """A solver's absolute tolerances would stop early on raw sensitivities of 1e-19 … 1e-3."""
    built = problem(7, additive=True)
    linear = built.linear * np.repeat(10.0 ** -np.arange(2, 23, 3), built.sizes)
    rows = np.vstack([linear, built.costs])
    built = replace(built, linear=linear, tables=type(built.tables).build(built.sizes, rows, built.pair))
    for fraction in (0.3, 0.7, 0.95):
        tight = at_fraction(built, fraction)
        assert loss(tight, exact_additive(tight)) == pytest.approx(loss(tight, brute_force(tight)), rel=1e-9)


def test_milp_meets_several_budgets_at_once():
    built = problem(8, additive=True)
    ends = built.values(np.stack([built.sizes * 0, built.sizes - 1]).astype(np.int16))
    limits = {"size_bytes": ends[:, 1] @ [0.6, 0.4], "bops": ends[:, 3] @ [0.8, 0.2], "mean_bits": 5.0}
    built = with_budgets(built, limits)
    assert loss(built, exact_additive(built)) == pytest.approx(loss(built, brute_force(built)), rel=1e-9)
    assert built.feasible(np.array([greedy(built), exact_additive(built)])).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_branch_and_bound_is_the_best_of_all_with_interactions(seed, fraction):
    built = small(seed, fraction, additive=False)
    genome = branch_and_bound(built)
    assert built.feasible(genome[None])[0]
    assert loss(built, genome) == pytest.approx(loss(built, brute_force(built)), rel=1e-9)


def test_branch_and_bound_with_strong_interactions_and_two_budgets():
    built = problem(8, seed=5)
    built = replace(built, pair=4 * built.pair)
    built = replace(
        built, tables=type(built.tables).build(built.sizes, np.vstack([built.linear, built.costs]), built.pair)
    )
    ends = built.values(np.stack([built.sizes * 0, built.sizes - 1]).astype(np.int16))
    built = with_budgets(built, {"size_bytes": ends[:, 1] @ [0.6, 0.4], "bops": ends[:, 3] @ [0.8, 0.2]})
    assert loss(built, branch_and_bound(built)) == pytest.approx(loss(built, brute_force(built)), rel=1e-9)


def test_branch_and_bound_says_where_it_ends(monkeypatch):
    monkeypatch.setattr("mpsearch.optimization.proof._BRANCHES", 1000)
    with pytest.raises(InputError, match="about 12 free layers"):
        branch_and_bound(at_fraction(problem(40), 0.3))


def test_a_thinned_front_is_near_the_exact_one():
    built = problem(30, additive=True)
    price = built.costs[0]
    exact, thinned = (knapsack_front(built, built.linear, price, states)[1] for states in (None, 1000))
    assert len(thinned) <= 1000 < len(exact)
    at = np.searchsorted(exact[:, 1], thinned[:, 1], side="right") - 1
    assert np.median(thinned[:, 0] / exact[at, 0]) < 1.01


@pytest.mark.parametrize("seed", range(3))
def test_dynamic_programming_finds_the_whole_front(seed):
    built = problem(8, seed=seed, additive=True)
    genomes, totals = exact_front(built)
    everything = brute_force_front(built)
    np.testing.assert_allclose(totals, built.evaluate(everything), rtol=1e-12)
    np.testing.assert_allclose(built.evaluate(genomes), totals, rtol=1e-12)


def test_the_hull_lies_on_the_front_and_is_convex():
    built = problem(8, additive=True)
    front = exact_front(built)[1]
    corners = built.evaluate(hull(built, "size_bytes"))
    np.testing.assert_allclose(corners[:, 0], front[np.searchsorted(front[:, 1], corners[:, 1]), 0])
    slopes = np.diff(corners[:, 0]) / np.diff(corners[:, 1])
    assert (np.diff(slopes) > -1e-12 * np.abs(slopes[1:])).all()
    for a, b in itertools.pairwise(corners):
        between = front[(front[:, 1] > a[1]) & (front[:, 1] < b[1])]
        chord = a[0] + (between[:, 1] - a[1]) * (b[0] - a[0]) / (b[1] - a[1])
        assert (between[:, 0] >= chord * (1 - 1e-9)).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_with_interactions_the_truth_lies_between_bound_and_local_search(seed, fraction):
    built = small(seed, fraction, additive=False)
    truth = loss(built, brute_force(built))
    assert lower_bound(built, 30) <= truth * (1 + 1e-9)
    for start in (greedy(built), exact_additive(built)):
        end = local_search(built, start)
        assert built.feasible(end[None])[0]
        assert truth * (1 - 1e-12) <= loss(built, end) <= loss(built, start)
    assert loss(built, local_search(built, exact_additive(built))) <= truth * 1.02


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_bound_is_tight_where_losses_add_up(fraction):
    built = small(1, fraction, additive=True)
    assert lower_bound(built, 30) == pytest.approx(loss(built, brute_force(built)), rel=1e-4)


def test_local_search_ends_where_no_move_of_two_genes_helps():
    built = small(0, 0.4, additive=False)
    end = local_search(built, np.zeros(8, np.int16))
    best = loss(built, end)
    for g, h in itertools.combinations(range(8), 2):
        for c, d in itertools.product(range(built.sizes[g]), range(built.sizes[h])):
            other = end.copy()
            other[[g, h]] = c, d
            if built.feasible(other[None])[0]:
                assert loss(built, other) >= best * (1 - 1e-9)


def test_uniform_answers_have_their_precision_wherever_allowed():
    built = problem()
    for precision, genome in uniform(built):
        config = built.config(genome)
        assert set(config.precisions[1:-1]) == {precision}
        assert config.wbits[0] == config.wbits[-1] == 8


def test_the_table_of_answers_is_consistent():
    built = at_fraction(problem(8), 0.4)
    rows = answers(built, brute_force(built))
    assert [row.name for row in rows][-3:] == ["greedy", "exact additive", "found"]
    fitting = [row.loss for row in rows if row.feasible]
    assert rows[-1].loss == min(fitting)
    limit = dict(built.budgets)["size_bytes"]
    assert all((dict(row.costs)["size_bytes"] <= limit) == row.feasible for row in rows)


def test_exhaustive_search_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="5,000,000"):
        brute_force(problem())


def test_nothing_but_results_reaches_stdout(capfd):
    for seed in range(6):
        exact_additive(small(seed, 0.6, additive=True))
    assert capfd.readouterr().out == ""
