"""The record of a run's options, and the file that keeps it."""

from __future__ import annotations

import tomllib
from pathlib import Path

from mpsearch.request.options import RunOptions


def test_options_come_back_from_their_file(tmp_path: Path) -> None:
    options = RunOptions(
        model="m", size_budget_bytes=10, latency_budget_s=3e-3, energy_budget_j=1e-7, bops_budget=3.4e10,
        mean_bits_budget=3.5, device="npu-int4", objectives=("size_bytes", "energy_j"), fix=("a=8", "b!=2,3"),
    )  # fmt: skip
    (tmp_path / "config.toml").write_text(options.to_toml(), encoding="utf-8")
    assert RunOptions.from_toml(tmp_path / "config.toml") == options
    assert list(options.budgets) == ["size_bytes", "mean_bits", "bops", "latency_s", "energy_j"]


def test_paths_of_any_characters_come_back(tmp_path: Path) -> None:
    for path in ("Bilder/\N{PILE OF POO}/netz.py:netz", "C:\\netze\\\u00fc.pt", 'a "quoted"\n\ttext \x7f \u2028'):
        options = RunOptions(model=path, weights=path, data=path, size_budget_bytes=10)
        (tmp_path / "config.toml").write_text(options.to_toml(), encoding="utf-8")
        assert RunOptions.from_toml(tmp_path / "config.toml") == options
        assert tomllib.loads(options.to_toml())["data"] == path
