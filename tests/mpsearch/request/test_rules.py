"""Rules about single layers: read, refused, and kept by every point of a front."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import network

from hwmodel import InputError, Precision
from mpsearch.optimization.build import build_problem, with_budgets
from mpsearch.optimization.nsga2 import search
from mpsearch.optimization.settings import SearchSettings
from mpsearch.request.rules import Rule, allowed_precisions, parse_rule, parse_tie, tied

NAMES = ("features.0.0", "features.1.conv.0", "classifier.1")
OFFERED = tuple(map(Precision, (2, 4, 8)))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("features.0.0=8", Rule("features.0.0", (8,), False)),
        ("a=8,4, 4", Rule("a", (4, 8), False)),
        ("a!=2", Rule("a", (2,), True)),
    ],
)
def test_rules_are_read(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize("text", ["a", "a=", "=8", "a=x", "a==8", "a=8;4", ""])
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(InputError, match="--fix looks like LAYER=8"):
        parse_rule(text)


def test_bits_and_ties_are_checked() -> None:
    with pytest.raises(InputError, match="2 to 8, got 9"):
        parse_rule("a=4,9")
    assert parse_tie("a, b,a") == ("a", "b")
    with pytest.raises(InputError, match="two or more layers"):
        parse_tie("a")


def allowed(*texts: str, held: tuple[str, ...] = ("features.0.0",)) -> dict[str, tuple[int, ...]]:
    rules = [parse_rule(text) for text in texts]
    found = allowed_precisions(NAMES, OFFERED, held, Precision(8), rules)
    return {name: tuple(precision.w for precision in precisions) for name, precisions in found.items()}


def test_rules_replace_and_take_away() -> None:
    assert allowed() == {"features.0.0": (8,), "features.1.conv.0": (2, 4, 8), "classifier.1": (2, 4, 8)}
    assert allowed("features.0.0=6")["features.0.0"] == (6,)
    assert allowed("classifier.1!=2", "classifier.1!=8")["classifier.1"] == (4,)
    assert allowed("classifier.1!=4", "classifier.1=4,8")["classifier.1"] == (8,)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("feature.0.0=8",), "did you mean features.0.0"),
        (("features.0.0!=8",), "leaves nothing.*--edges free"),
        (("classifier.1!=2,4,8",), "has only 2,4,8"),
        (("classifier.1=2", "classifier.1=4"), "another set already"),
    ],
)
def test_rules_that_cannot_be_kept(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        allowed(*texts)


def test_ties_join_groups() -> None:
    table = tied(network(6, ties={1: "t", 4: "t"})[0], [("l0", "l1"), ("l2", "l3")])
    assert table.genes == ((0, 1, 4), (2, 3), (5,))
    with pytest.raises(InputError, match="no layer 'l9'"):
        tied(table, [("l0", "l9")])


@pytest.mark.parametrize("objectives", [("loss", "size_bytes"), ("loss", "size_bytes", "bops")])
def test_no_point_of_a_front_breaks_a_rule(objectives: tuple[str, ...]) -> None:
    table, costs, sensitivity = network(14)
    table = tied(table, [("l3", "l9", "l4")])
    rules = [parse_rule(text) for text in ("l1=3", "l4!=2,8", "l6!=4", "l9=2,4,6")]
    may = allowed_precisions(table.names, sensitivity.precisions, ("l0",), Precision(8), rules)
    built = build_problem(table, costs, sensitivity, may, objectives=objectives)
    middle = built.values((built.sizes[None] // 2).astype(np.int16))[0]
    built = with_budgets(built, {"size_bytes": middle[1], "mean_bits": 6.0})
    front = search(built, SearchSettings(population=40, generations=15, neighbours=200_000))
    assert len(front) > 20
    for index in range(len(front)):
        bits = dict(zip(front.layers, front.config(index).wbits, strict=True))
        assert bits["l0"] == 8
        assert bits["l1"] == 3
        assert bits["l3"] == bits["l9"] == bits["l4"]
        assert bits["l4"] in (4, 6)
        assert bits["l6"] != 4
    choices = front.choices.astype(int)
    code_bits = costs.code_bits[np.arange(14), choices].sum(axis=1)
    assert (code_bits <= 6 * table.n_weights).all()
