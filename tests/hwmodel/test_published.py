"""The models still give what docs/hardware.md says of them, beside figures that others published."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_hardware  # noqa: E402
import published  # noqa: E402


@pytest.fixture(scope="module")
def compared() -> list[bench_hardware.Row]:
    return bench_hardware.rows()


def test_the_page_and_the_results_are_what_the_models_give(compared: list[bench_hardware.Row]) -> None:
    assert bench_hardware.table(compared) in bench_hardware.PAGE.read_text("utf-8")
    stored = json.loads(bench_hardware.RESULT.read_text("utf-8"))["rows"]
    assert len(stored) == len(compared)
    for row, kept in zip(compared, stored, strict=True):
        assert (kept["device"], kept["what"], kept["unit"], kept["items"]) == (
            row.device,
            row.what,
            row.unit,
            row.items,
        )
        assert kept["published"] == pytest.approx(row.published)
        assert kept["model"] == pytest.approx(row.model)
        assert kept["rank"] == (None if row.rank is None else pytest.approx(row.rank))


def test_bit_fusion_is_met_network_by_network(compared: list[bench_hardware.Row]) -> None:
    ours = {row.what: row for row in compared if row.device == "bitfusion"}
    assert set(ours) > set(published.BITFUSION)
    for row in ours.values():
        assert abs(row.error) < 0.1, row
    assert ours["all layers"].rank is not None
    assert ours["all layers"].rank > 0.95


def test_scale_sim_is_met_to_the_cycle_where_it_keeps_weights(compared: list[bench_hardware.Row]) -> None:
    rows = [row for row in compared if "SCALE-Sim" in row.what]
    assert len(rows) == 4
    for row in rows:  # its reports count from 0: one cycle less
        assert row.model - row.published == pytest.approx(1) if "weight" in row.what else 0 <= row.error < 0.11


def test_layers_of_mobile_networks_are_the_published_ones() -> None:
    one, two = published.mobilenet_v1(1.0, 224, 1000), published.mobilenet_v2()
    assert (one.macs, one.n_weights) == (568_740_352, 4_209_088)  # 569 M and 4.2 M, less biases and norms
    assert (two.macs, two.n_weights) == (300_774_272, 3_469_760)
