"""Budgets of latency, energy, bit operations and mean bits, on the command line and in the record of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commandline import Command, Result
from PIL import Image

from hwmodel import BitConfig, LayerTable, Precision
from hwmodel.device import load_device
from hwmodel.errors import InputError
from hwmodel.latency import device_costs
from mpsearch.optimization.front import ParetoFront
from mpsearch.request.budgets import COSTS, default_objectives, describe
from mpsearch.request.edges import pinned_edges
from mpsearch.request.options import RunOptions, device_abits, parse_abits, parse_objectives

QUICK = ("--steps", 2, "--population", 16, "--generations", 8, "--samples", 32)
DEVICE = """
name = "toy"
title = "A toy"
model = "roofline"
[kernels]
unit = "MAC/cycle"
source = "assumed: for the test"
W8A8 = 1
W4A8 = 2
W2A8 = 4
[numbers]
frequency = {value = 1e8, unit = "Hz", source = "assumed"}
memory_bandwidth = {value = 1e9, unit = "B/s", source = "assumed"}
output_bits = {value = 8, unit = "bit", source = "assumed"}
power = {value = 0.5, unit = "W", source = "assumed"}
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("device") / "toy.toml"
    path.write_text(DEVICE)
    return path


def run(command: Command, tiny: Path, out: Path, *more: object) -> Result:
    return command("run", "--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data", "--out", out, *QUICK, *more)


def searched(command: Command, tiny: Path, out: Path, *more: object) -> tuple[ParetoFront, LayerTable, RunOptions]:
    """Front, layers and options after the sensitivity and search steps."""
    model = ("--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data", "--samples", 32)
    done = command("sensitivity", *model, "--out", out, *more)
    assert done.code == 0, done.err
    done = command("search", out)
    assert done.code == 0, done.err
    assert "found" in done.out
    front = ParetoFront.from_json((out / "front.json").read_text())
    table = LayerTable.from_json(json.loads((out / "layers.json").read_text())["table"])
    return front, table, RunOptions.from_toml(out / "config.toml")


def summed(out: Path, toy: Path, name: str) -> float:
    """A cost of the finished configuration, from the device model itself."""
    table = LayerTable.from_json(json.loads((out / "layers.json").read_text())["table"])
    config = BitConfig.from_json(json.loads((out / "chosen" / "budget.json").read_text())["config"])
    device = load_device(toy)
    costs = device_costs(table, sorted(set(config.precisions)), device)
    column = [costs.precisions.index(precision) for precision in config.precisions]
    array = getattr(costs, name)
    return float(array[np.arange(len(table)), column].sum())


def test_a_run_within_latency_and_size(tiny: Path, toy: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    budgets = ("--latency-budget", "400us", "--size-budget", "5.2kB", "--device", toy)
    result = run(command, tiny, out, *budgets)
    assert result.code == 0, result.err
    assert "device toy does not run W3" in result.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["device"] == "toy"
    assert summary["activation_bits"] == [8]  # what the device runs, really quantized
    assert "activations            8 bits" in result.out
    assert summary["latency_s"] == pytest.approx(summed(out, toy, "latency_s"))
    assert summary["energy_j"] == pytest.approx(0.5 * summary["latency_s"])
    assert summary["latency_s"] <= summary["latency_budget_s"] == 4e-4
    assert summary["size_bytes"] <= summary["size_budget_bytes"] == 5200
    report = (out / "report.txt").read_text()
    for text in (result.out, report):
        assert f"of {COSTS['latency_s'].text(4e-4)} (" in text
        assert "latency on toy" in text
        assert "energy, mJ" in text
        assert "exact additive" in text
    front = ParetoFront.from_json((out / "front.json").read_text())
    assert front.names == ("loss", "size_bytes", "latency_s")
    best = front.objectives[front.best()]
    assert best[1:].tolist() == pytest.approx([summary["size_bytes"], summary["latency_s"]])
    costs = json.loads((out / "costs.json").read_text())
    assert costs["device"] == "toy"
    assert np.array(costs["latency_s"]).shape == np.array(costs["energy_j"]).shape == (6, len(costs["precisions"]))
    with Image.open(out / "front.png") as picture:
        picture.load()
    shown = command("front", out)
    assert "latency, ms" in shown.out

    again = run(command, tiny, out, *budgets)
    for step in ("sensitivity: cache is current", "search: front is current", "finalize: model-budget.safetensors is"):
        assert step in again.err
    faster = tmp_path / "faster.toml"
    faster.write_text(DEVICE.replace("1e8", "2e8"))
    other = run(command, tiny, out, *budgets[:-1], faster)
    assert "front is current" not in other.err


@pytest.mark.parametrize(
    ("budgets", "names", "cost"),
    [
        (("--energy-budget", "250uJ"), ("loss", "energy_j"), "energy_j"),
        (("--latency-budget", "500us", "--objectives", "size,energy"), ("loss", "size_bytes", "energy_j"), "latency_s"),
    ],
)
def test_other_budgets_and_objectives(
    tiny: Path, toy: Path, tmp_path: Path, command: Command, budgets: tuple[str, ...], names: tuple[str, ...], cost: str
) -> None:
    front, table, options = searched(command, tiny, tmp_path / "out", *budgets, "--device", toy)
    assert front.names == names
    device = load_device(toy)
    points = [front.best()] if cost in names else range(len(front))  # what is no objective holds everywhere
    for point in points:
        config = front.config(point)
        costs = device_costs(table, front.precisions, device)
        column = [costs.precisions.index(precision) for precision in config.precisions]
        total = getattr(costs, cost)[np.arange(len(table)), column].sum()
        assert total <= options.budgets[cost] * (1 + 1e-9)
        if cost in names:
            assert front.objectives[point, names.index(cost)] == pytest.approx(total)


def test_budgets_without_a_device(tiny: Path, tmp_path: Path, command: Command) -> None:
    front, table, _ = searched(command, tiny, tmp_path / "out", "--mean-bits", "4.5", "--bops-budget", "40M")
    assert front.names == ("loss", "size_bytes")
    for point in range(len(front)):
        config = front.config(point)
        assert sum(layer.n_weights * config[layer.name].w for layer in table) <= 4.5 * table.n_weights
        assert sum(layer.macs * config[layer.name].w * config[layer.name].a for layer in table) <= 4e7


@pytest.mark.parametrize(
    ("budgets", "parts"),
    [
        (("--latency-budget", "1us"), ("latency budget is 1 µs", "fastest", "on toy has", "W2A", "--latency-budget")),
        (("--energy-budget", "1nJ"), ("energy budget is 1 nJ", "least-energy", "on toy has", "--energy-budget")),
        (("--mean-bits", "1"), ("mean bits budget is 1 bits", "narrowest", "--mean-bits")),
        (("--bops-budget", "1k"), ("1 kBOPs", "leanest", "--bops-budget")),
        (("--size-budget", "1kB"), ("1,000 bytes", "smallest file", "W2A", "--size-budget")),
        (("--latency-budget", "1ms", "--wbits", "3,6"), ("toy runs none of W3A8, W6A8", "W4A8", "--wbits")),
        (("--latency-budget", "1"), ("units s, ms, us, ns", "'1'")),
        (("--energy-budget", "1kWh"), ("units J, mJ, uJ, nJ", "'1kWh'")),
        (("--bops-budget", "many"), ("34G", "'many'")),
        (("--mean-bits", "0"), ("3.5", "'0'")),
        (("--size-budget", "6kB", "--objectives", "size,speed"), ("size, latency, energy", "'size,speed'")),
        ((), ("a budget is needed", "--size-budget", "--latency-budget")),
    ],
    ids=str,
)
def test_a_wrong_budget_gets_one_line_before_anything_is_measured(
    tiny: Path, toy: Path, tmp_path: Path, command: Command, budgets: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    result = run(command, tiny, tmp_path / "out", *budgets, "--device", toy)
    assert result.code == 2
    lines = [line for line in result.err.splitlines() if line.startswith("mpsearch: ")]
    assert len(lines) == 1
    assert "sensitivity" not in result.err
    for part in parts:
        assert part in lines[0]


def test_a_device_is_needed_and_must_give_energy(tiny: Path, tmp_path: Path, command: Command) -> None:
    for budget in (
        ("--latency-budget", "3ms"),
        ("--energy-budget", "1mJ"),
        ("--mean-bits", "4", "--objectives", "energy"),
    ):
        result = run(command, tiny, tmp_path / "out", *budget)
        assert result.code == 2
        assert "name one with --device" in result.err
    result = run(command, tiny, tmp_path / "out", "--energy-budget", "1mJ", "--device", "mpic")
    assert result.code == 2
    assert "device mpic gives no energy" in result.err


def test_budgets_that_exclude_each_other(tiny: Path, tmp_path: Path, command: Command) -> None:
    model = ("--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data")
    slow = np.tile(np.arange(8, 0, -1.0)[:, None], (6, 1, 8))  # a device on which few bits are slow
    np.save(tmp_path / "slow.npy", slow)
    table = tmp_path / "slow.csv"
    imported = command("import-haq", tmp_path / "slow.npy", *model, "--unit", "1ms", "--batch", 1, "--out", table)
    assert imported.code == 0
    result = run(command, tiny, tmp_path / "out", "--mean-bits", "4", "--latency-budget", "7ms", "--device", table)
    assert result.code == 2
    assert "cannot be met together: mean bits may be 4 bits, but within latency of 7 ms it is at least" in result.err
    assert "sensitivity" not in result.err


def test_the_edges_are_held_where_every_budget_has_room() -> None:
    from synthetic import network

    table, costs, _ = network(6, (8,))
    size, bops = (float(array.sum()) for array in (costs.weight_bytes, costs.bops))
    first, last = table.names[0], table.names[-1]
    sizes, ops = costs.weight_bytes[:, 0].astype(float), costs.bops[:, 0]
    assert pinned_edges(table, costs, {"size_bytes": 1.0}, "8") == (first, last)
    assert pinned_edges(table, costs, {"size_bytes": 1e12}, "free") == ()
    assert pinned_edges(table, costs, {"size_bytes": 4 * sizes[0]}, "auto")[:1] == (first,)
    assert first not in pinned_edges(table, costs, {"size_bytes": 3.9 * sizes[0]}, "auto")
    assert first not in pinned_edges(table, costs, {"size_bytes": 1e3 * size, "bops": 3.9 * ops[0]}, "auto")
    assert pinned_edges(table, costs, {"size_bytes": 1e3 * size, "bops": 1e3 * bops}, "auto") == (first, last)


def test_the_front_spans_what_is_budgeted() -> None:
    one = {"size_bytes": 1.0}
    assert default_objectives(one, False) == ("size_bytes",)
    assert default_objectives(one, True) == ("size_bytes", "latency_s")
    assert default_objectives({"latency_s": 1.0}, True) == ("latency_s",)
    assert default_objectives({"energy_j": 1.0, "latency_s": 1.0}, True) == ("latency_s", "energy_j")
    assert default_objectives({"bops": 1.0}, False) == ("size_bytes",)
    assert default_objectives({**one, "energy_j": 1.0, "latency_s": 1.0}, True) == ("size_bytes", "latency_s")
    assert parse_objectives("energy, size") == ("energy_j", "size_bytes")
    for text in ("", "size,size", "size,latency,energy"):
        with pytest.raises(InputError, match="--objectives"):
            parse_objectives(text)


def test_activation_bits_that_a_device_runs(toy: Path) -> None:
    assert device_abits("npu-int4", (4, 8)) == (8,)
    assert device_abits(str(toy), (3, 6)) == (8,)
    assert parse_abits("8, 4") == (4, 8)
    assert parse_abits("32") == ()
    assert parse_abits("32,8") == (8, 32)
    for text in ("", "x", "9", "8,64"):
        with pytest.raises(InputError, match="2,3,4,8"):
            parse_abits(text)


def test_a_configuration_is_described_in_a_line() -> None:
    names = tuple("abcdefg")
    assert describe(BitConfig.uniform(names, Precision(4, 8))) == "W4A8 everywhere"
    mixed = BitConfig(names, (Precision(8, 8), *[Precision(4, 8)] * 5, Precision(2, 8)))
    assert describe(mixed) == "W4A8 everywhere but W2A8 in g, W8A8 in a"


def test_the_page_describes_a_device_that_works(tiny: Path, tmp_path: Path, command: Command) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "hardware.md").read_text("utf-8")

    def block(kind: str) -> str:
        return page.split(f"```{kind}\n")[1].split("```")[0]

    device = tmp_path / "my-npu.toml"
    device.write_text(block("toml"), "utf-8")
    shown = command("devices", device)
    assert shown.code == 0
    assert "my-npu" in shown.out
    assert "datasheet, page 9" in shown.out
    model = ("--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data")
    costed = command("layers", *model, "--device", device)
    assert costed.code == 0
    assert "W4A8" in costed.out
    searched(command, tiny, tmp_path / "out", "--latency-budget", "1ms", "--device", device)

    table = tmp_path / "here.csv"
    table.write_text(block("csv"), "utf-8")
    costed = command("layers", *model, "--device", table)
    assert costed.code == 0
    assert "no row in the table: fitted" in costed.out
    assert "2.two" in costed.out.split("no row in the table")[1]


def test_a_table_of_haq_becomes_a_device(tiny: Path, tmp_path: Path, command: Command) -> None:
    model = ("--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data")
    np.save(tmp_path / "haq.npy", np.random.default_rng(0).uniform(1, 2, (6, 8, 8)))
    out = tmp_path / "haq.csv"
    done = command("import-haq", tmp_path / "haq.npy", *model, "--unit", "1ms", "--out", out)
    assert done.code == 0, done.err
    shown = command("layers", *model, "--device", out)
    assert shown.code == 0
    assert "measured" in shown.out
    assert "no row in the table" not in shown.out
    np.save(tmp_path / "other.npy", np.ones((5, 8, 8)))
    for arguments, message in (
        ((tmp_path / "other.npy", "--unit", "1ms", "--out", out), "must have shape (6, 8, 8), got (5, 8, 8)"),
        ((tmp_path / "haq.npy", "--unit", "1", "--out", out), "units s, ms, us, ns"),
        ((tmp_path / "haq.npy", "--unit", "1ms", "--out", tmp_path / "haq.txt"), "--out must be a .csv or .json"),
        ((tmp_path / "none.npy", "--unit", "1ms", "--out", out), "none.npy"),
    ):
        refused = command("import-haq", *arguments, *model)
        assert refused.code == 2
        assert message in refused.err
