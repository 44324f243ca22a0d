"""The tables of docs/coding.md and docs/performance.md are those that were measured."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"


def test_coding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    bench = importlib.import_module("bench_coding")
    text, results = (
        (DOCS / "coding.md").read_text("utf-8"),
        json.loads((RESULTS / "bench_coding.json").read_text("utf-8")),
    )
    assert bench.page(text, results) == text
    by_rate = {row["asked"]: row for row in results["layer"] if row["coding"] == "entropy"}
    fixed = {row["asked"]: row for row in results["layer"] if row["coding"] == "fixed"}
    for bits, share in ((3, 0.61), (4, 0.49)):  # what the page's first words say of normal weights
        assert by_rate[bits]["normal_error"] < share * fixed[bits]["normal_error"]
        assert by_rate[bits]["layer_bits"] <= bits
    for row in results["layer"]:
        over = row["normal_error"] * 4 ** row["normal_bits"]
        assert row["coding"] != "trellis" or row["asked"] < 2 or 1 < over < 1.13  # less than half as far from the bound
        assert row["coding"] != "entropy" or row["asked"] < 2 or 1.4 < over < 1.6
    for row in results["networks"]:
        assert row["size_bytes"] <= row["predicted_bytes"] < 1.01 * row["size_bytes"]


def test_performance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    for name in ("bench_scores", "bench_growth"):
        bench = importlib.import_module(name)
        results = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        assert bench.table(results["rows"]) in (DOCS / "performance.md").read_text("utf-8")
    for row in results["rows"]:  # linear, with a part that is fixed
        ratios = [after / before for before, after in itertools.pairwise(row["seconds"])]
        assert all(1 < ratio < 2.5 for ratio in ratios), row  # other work on the machine among them


def test_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    bench = importlib.import_module("bench_detection")
    results = json.loads((RESULTS / "bench_detection.json").read_text("utf-8"))
    assert bench.table(results) in (DOCS / "results.md").read_text("utf-8")
    assert set(results["rows"]) <= set(bench.names())
