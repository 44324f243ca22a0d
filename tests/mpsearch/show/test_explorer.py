"""The page holds what the front holds, byte by byte, and asks nobody for more."""

from __future__ import annotations

import base64
import json
import re
import zlib
from html import unescape
from typing import Any

import numpy as np
import pytest
from exploring import explored_run, record

from hwmodel import BitConfig
from hwmodel.cost import total_costs
from mpsearch.show.explorer import ExploredRun, column, frame, page


def data_of(text: str) -> list[dict[str, Any]]:
    """The runs that a page shows, as it reads them."""
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)["runs"]


def unpacked(packed: dict[str, str]) -> np.ndarray:
    types = {"u1": np.uint8, "f4": np.float32, "f8": np.float64}
    return np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), types[packed["type"]])


@pytest.fixture(scope="module")
def run() -> ExploredRun:
    return explored_run("size_bytes", "bops")


def test_columns_come_back() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 9, (5, 7), np.uint8), rng.normal(size=11), rng.normal(size=3).astype(np.float32)):
        assert np.array_equal(unpacked(column(values)).reshape(values.shape), values)
    assert np.array_equal(unpacked(column(np.arange(6.0).reshape(2, 3).T)), [0, 3, 1, 4, 2, 5])


def test_every_configuration_and_its_costs_are_in_the_page(run: ExploredRun) -> None:
    front, (data,) = run.front, data_of(page([run]))
    bits = unpacked(data["bits"]).reshape(len(front.layers), len(front)).T
    assert np.array_equal(bits, front.choices)
    assert [layer["name"] for layer in data["layers"]] == list(front.layers)
    assert np.allclose(unpacked(data["loss"]), front.objectives[:, 0], rtol=1e-6)
    at = np.arange(len(front.layers))
    costs = {cost["name"]: cost for cost in data["costs"]}
    for number, name in enumerate(front.names[1:], 1):
        by_layer = unpacked(costs[name]["by_layer"]).reshape(len(at), len(front.precisions))
        totals = by_layer[at, front.choices].sum(axis=1) + costs[name]["fixed"]
        assert np.allclose(totals, front.objectives[:, number], rtol=1e-12)
        assert costs[name]["objective"]
    assert not costs["mean_bits"]["objective"]
    alone = unpacked(data["alone"]).reshape(run.alone.shape)
    assert np.allclose(alone, run.alone, rtol=1e-6)
    assert data["budgets"] == dict(front.budgets)
    assert (data["best"], data["knee"]) == (front.best(), front.knee())


def test_finished_configurations_are_found_by_their_bits(run: ExploredRun) -> None:
    (data,) = data_of(page([run]))
    chosen, beside = data["finished"]
    assert (chosen["name"], chosen["index"], chosen["label"]) == ("budget", run.front.best(), "75.0 %")
    assert chosen["figures"][0] == {"title": "top-1", "values": ["77.00 %", "12.00 %", "75.00 %"]}
    assert chosen["figures"][1]["values"][2] == "0.0700 nats"
    assert (beside["name"], beside["index"]) == ("mine", None)
    costs = total_costs(run.table, run.costs, BitConfig.from_json(dict(run.finished)["mine"]["config"]))
    assert beside["costs"] == {**costs, "size_bytes": 2}  # the file as it was written


def test_bits_that_the_run_did_not_price(run: ExploredRun) -> None:
    odd = record({**run.front.config(0).to_json(), "l3": "W7A4"}, 4321)
    (data,) = data_of(page([explored_run("size_bytes", finished=[("odd", odd)])]))
    assert data["finished"][0]["index"] is None
    assert data["finished"][0]["costs"] == {"size_bytes": 4321}


def test_it_loads_nothing_and_runs_nothing_that_a_name_holds(run: ExploredRun) -> None:
    evil = "</script><script>fail()</script>@STYLE@"
    text = page([explored_run("size_bytes", names={2: evil})])
    assert evil not in text
    assert data_of(text)[0]["layers"][2]["name"] == evil
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", text)
    assert "default-src 'none'" in text
    assert len(re.findall("https?://", text.replace("http://www.w3.org/2000/svg", ""))) == 0


def test_a_page_in_a_frame_is_the_page(run: ExploredRun) -> None:
    text = page([run])
    (held,) = re.findall(r'srcdoc="([^"]*)"', frame(text))
    assert unescape(held) == text
    assert "allow-same-origin" not in frame(text)
