"""The problem against the plain loop, and its refusals."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic import network, problem

from hwmodel.errors import BudgetError, InputError
from hwmodel.precision import Precision
from mpsearch.optimization.build import build_problem
from mpsearch.optimization.problem import smallest
from mpsearch.sensitivity.table import SensitivityTable


def plain_loop(sensitivity: SensitivityTable, choice: np.ndarray) -> float:
    n_layers, n_choices = sensitivity.intra.shape
    loss = 0.0
    for layer in range(n_layers):
        loss += sensitivity.intra[layer, choice[layer]]
        for other in range(n_layers):
            if other != layer:
                loss += sensitivity.inter[layer * n_choices + choice[layer], other * n_choices + choice[other]]
    return loss


@pytest.mark.parametrize(("n_layers", "bits"), [(53, (2, 3, 4, 6, 8)), (30, (2, 3, 4, 5, 6, 7, 8)), (7, (2, 8))])
def test_values_equal_the_plain_loop(n_layers, bits):
    table, costs, sensitivity = network(n_layers, bits)
    built = build_problem(table, costs, sensitivity, {"l0": [Precision(8)]})
    rng = np.random.default_rng(0)
    genomes = rng.integers(0, built.sizes, (40, n_layers)).astype(np.int16)
    choices = built.layer_choices(genomes)
    assert (choices[:, 0] == len(bits) - 1).all()
    values = built.values(genomes)
    for genome_values, choice in zip(values, choices, strict=True):
        np.testing.assert_allclose(genome_values[0], plain_loop(sensitivity, choice), rtol=1e-12)
        at = np.arange(n_layers), choice
        assert genome_values[1] == costs.fixed_bytes + costs.weight_bytes[at].sum()
        np.testing.assert_allclose(genome_values[2], costs.code_bits[at].sum() / table.n_weights)
        np.testing.assert_allclose(genome_values[3], costs.bops[at].sum())
        np.testing.assert_allclose(sensitivity.loss(choice), genome_values[0], rtol=1e-12)


def test_a_genome_has_the_same_values_in_any_batch():
    built = problem()
    genomes = np.random.default_rng(0).integers(0, built.sizes, (9000, 53)).astype(np.int16)
    together = built.values(genomes)
    np.testing.assert_array_equal(
        together[[5, 8999]], np.concatenate([built.values(genomes[i : i + 1]) for i in (5, 8999)])
    )
    np.testing.assert_array_equal(together[:300], built.values(genomes[:300]))


def test_tied_layers_share_a_gene_and_keep_their_interaction():
    table, costs, sensitivity = network(6, ties={1: "t", 4: "t"})
    built = build_problem(
        table, costs, sensitivity, {"l4": [Precision(2), Precision(4)], "l1": [Precision(4), Precision(8)]}
    )
    assert built.genes == ((0,), (1, 4), (2,), (3,), (5,))
    assert built.choices[1] == (2,)
    genomes = np.random.default_rng(1).integers(0, built.sizes, (10, 5)).astype(np.int16)
    choices = built.layer_choices(genomes)
    expected = [plain_loop(sensitivity, choice) for choice in choices]
    np.testing.assert_allclose(built.values(genomes)[:, 0], expected, rtol=1e-12)
    np.testing.assert_array_equal(built.genomes(choices), genomes)
    choices[0, 4] = 0
    with pytest.raises(InputError, match="not allowed"):
        built.genomes(choices)


def test_a_budget_below_the_minimum_says_the_minimum():
    least = smallest(problem(), "size_bytes")
    with pytest.raises(BudgetError, match=f"{least:,.10g}"):
        problem(budgets={"size_bytes": least - 1})
    assert problem(budgets={"size_bytes": least}).feasible(np.zeros((1, 53), np.int16)).all()


def test_budgets_that_exclude_each_other_are_refused_with_what_is_left():
    free = problem()
    table, costs, sensitivity = network()
    latency = costs.bops[:, ::-1].copy()  # a device on which low bits are slow
    slow = replace(costs, latency_s=latency)
    size = smallest(free, "size_bytes")
    quick = latency.min(axis=1).sum()
    with pytest.raises(BudgetError, match=r"within latency of .* it is at least"):
        build_problem(table, slow, sensitivity, budgets={"size_bytes": size * 1.01, "latency_s": quick * 1.01})
    with pytest.raises(BudgetError, match="latency budget is"):
        build_problem(table, slow, sensitivity, budgets={"latency_s": quick * 0.99})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"allowed": {"l99": [Precision(8)]}}, "did you mean l9"),
        ({"allowed": {"l1": [Precision(5)]}}, "not among the candidates"),
        ({"allowed": {"l1": []}}, "no precision is left"),
        ({"budgets": {"size": 1e6}}, "size_bytes"),
        ({"budgets": {"size_bytes": 0.0}}, "positive"),
        ({"budgets": {"size_bytes": float("nan")}}, "positive"),
        ({"budgets": {"latency_s": 1.0}}, "needs a device"),
        ({"objectives": ("size_bytes", "loss")}, "loss first"),
        ({"objectives": ("loss", "sise_bytes")}, "did you mean size_bytes"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        build_problem(*network(20), **arguments)


def test_tables_of_another_network_are_refused():
    table, _, sensitivity = network(10)
    with pytest.raises(InputError, match="another network"):
        build_problem(table, network(9)[1], sensitivity)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intra": np.full((2, 2), np.nan)}, "finite"),
        ({"intra": np.full((2, 2), -1.0)}, "at least 0"),
        ({"intra": np.zeros((2, 3))}, "shape"),
        ({"inter": np.triu(np.ones((4, 4)), 2)}, "symmetric"),
        ({"inter": np.ones((4, 4))}, "own block"),
        ({"precisions": (Precision(8), Precision(2))}, "ascend"),
    ],
)
def test_a_sensitivity_table_is_checked(change, message):
    good = {
        "intra": np.ones((2, 2)),
        "inter": np.zeros((4, 4)),
        "diagonal": np.ones((2, 2)),
        "precisions": (Precision(2), Precision(8)),
    }
    with pytest.raises(InputError, match=message):
        SensitivityTable(("a", "b"), samples=1, seed=0, metric="kl", fingerprint="", **(good | change))
