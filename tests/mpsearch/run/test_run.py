"""The main job on a small network, as a user runs it: every file, the resume, the repeat, the other commands."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import Command, Result, refused
from PIL import Image

import mpsearch
import recon
from hwmodel import BitConfig, InputError, LayerTable, Precision
from mpsearch.optimization.build import build_problem
from mpsearch.optimization.front import ParetoFront
from mpsearch.sensitivity.cache import load_table
from mpsearch.sources.split import Normalization
from recon.fit.checkpoint import Progress
from recon.quantizers.quantized import plainly_rounded

QUICK = ("--steps", 40, "--population", 40, "--generations", 30)
BUDGET = 5_200
FILES = {
    "config.toml", "layers.json", "sensitivity.safetensors", "costs.json", "front.json", "chosen",
    "model-budget.safetensors", "summary.json", "report.txt", "front.png",
    "front.html", "tight.json",
}  # fmt: skip


def arguments(tiny: Path, out: Path, *more: object) -> tuple[object, ...]:
    model, data = f"{tiny / 'net.py'}:net", tiny / "data"
    return ("run", "--model", model, "--data", data, "--size-budget", BUDGET, "--out", out, *QUICK, *more)


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder; tests that change it take a copy."""
    out = tmp_path_factory.mktemp("run") / "out"
    command = [sys.executable, "-m", "mpsearch", *map(str, arguments(tiny, out))]
    subprocess.run(command, check=True, capture_output=True)
    return out


def test_the_run_folder_has_every_file(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    assert [path.name for path in (finished / "chosen").iterdir()] == ["budget.json"]


def test_the_summary_says_what_is_true(finished: Path, tiny: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    model = finished / "model-budget.safetensors"
    assert summary["size_bytes"] == model.stat().st_size <= summary["size_budget_bytes"] == BUDGET
    chosen = json.loads((finished / "chosen" / "budget.json").read_text())
    table = LayerTable.from_json(json.loads((finished / "layers.json").read_text())["table"])
    config = BitConfig.from_json(chosen["config"])
    bits = sum(layer.n_weights * config[layer.name].w for layer in table)
    assert summary["weights_only_bytes"] == bits / 8
    assert summary["mean_weight_bits"] == pytest.approx(bits / table.n_weights)
    assert config.wbits[0] == config.wbits[-1] == 8  # first and last layer
    assert summary["metrics"]["finished"]["kl"] < summary["metrics"]["plain"]["kl"]
    assert summary["metrics"]["float"]["top1"] == 100
    assert set(summary["seconds"]) == {"sensitivity", "search", "finalize", "uniform bits"}
    assert summary["peak_rss_bytes"] > 1e8
    assert summary["seed"] == 0
    assert set(summary["versions"]) >= {"mpsearch", "torch", "pymoo"}

    loaded = mpsearch.load_packed(model, allow=f"{tiny / 'net.py'}:net")
    archive = np.load(tiny / "data" / "val.npz")
    x = Normalization((0.5,) * 3, (0.25,) * 3)(torch.from_numpy(archive["x"]))
    with torch.inference_mode():
        top1 = 100 * float((loaded(x).argmax(1).numpy() == archive["y"]).mean())
    assert summary["metrics"]["finished"]["top1"] == pytest.approx(top1)
    report = (finished / "report.txt").read_text()
    assert f"{summary['size_bytes']:,} bytes of {BUDGET:,}" in report
    assert "…" not in report  # nothing is cut off
    assert max(map(len, report.splitlines())) <= 110


def test_the_tight_end_is_that_of_the_front_and_measured(finished: Path, tiny: Path) -> None:
    tight = json.loads((finished / "tight.json").read_text())
    front = ParetoFront.from_json((finished / "front.json").read_text())
    sensitivity = load_table(finished / "sensitivity.safetensors")
    costs = [row["cost"] for row in tight["rows"]]
    assert costs == sorted(costs)
    assert 0 < len(costs) <= 3
    for row in tight["rows"]:
        bits = sensitivity.precisions.index(Precision.parse(row["bits"]))
        edge = sensitivity.precisions.index(Precision(8))
        choices = np.full(len(front.layers), bits)
        choices[[0, -1]] = edge
        assert row["loss"] == pytest.approx(sensitivity.loss(choices))
        assert row["cost"] <= BUDGET
        assert row["point"] == front.best({"size_bytes": row["cost"]})
        assert [row["point_loss"], row["point_cost"]] == front.objectives[row["point"]].tolist()
    at = tight["rows"][tight["at"]]
    assert at["point_loss"] < at["loss"] or tight["at"] == 0
    space: dict[str, Any] = {}
    exec(compile((tiny / "net.py").read_text(), "net.py", "exec"), space)
    archives = [np.load(tiny / "data" / f"{name}.npz") for name in ("calib", "val")]
    calib, val = (Normalization((0.5,) * 3, (0.25,) * 3)(torch.from_numpy(archive["x"])) for archive in archives)
    network = recon.capture(space["net"](), calib[:3])
    width, names = Precision.parse(at["bits"]), network.table.names
    config = BitConfig(names, tuple(Precision(8) if name in (names[0], names[-1]) else width for name in names))
    rounded = recon.quantized(network, plainly_rounded(network, (calib,), config)).model
    with torch.inference_mode():
        top1 = 100 * float((rounded(val).argmax(1).numpy() == archives[1]["y"]).mean())
    assert tight["measured"]["plain"]["top1"] == pytest.approx(top1)
    assert tight["measured"]["float"]["top1"] == 100
    assert tight["samples"] == len(val)
    report = (finished / "report.txt").read_text()
    assert f"everywhere, rounded plainly, keeps top-1 {top1:.2f} % of 100.00 %" in report


def test_the_front_is_one(finished: Path) -> None:
    front = ParetoFront.from_json((finished / "front.json").read_text())
    loss, size = front.objectives.T
    assert (np.diff(size) > 0).all()
    assert (np.diff(loss) < 0).all()
    table = load_table(finished / "sensitivity.safetensors")
    costs = json.loads((finished / "costs.json").read_text())
    sizes = np.array(costs["weight_bytes"])
    layers = np.arange(len(table.layers))
    for choice, (loss_at, size_at) in zip(front.choices, front.objectives, strict=True):
        assert size_at == costs["fixed_bytes"] + sizes[layers, choice].sum()
        assert loss_at == pytest.approx(table.loss(choice), rel=1e-9)
    with Image.open(finished / "front.png") as picture:
        assert picture.size == (1080, 840)


def test_a_second_start_finds_everything_current(finished: Path, tiny: Path, command: Command) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.suffix != ".png"}
    again = command(*arguments(tiny, finished))
    assert again.code == 0
    for step in ("sensitivity: cache is current", "search: front is current", "finalize: model-budget.safetensors is"):
        assert step in again.err
    assert before == {path: path.read_bytes() for path in before}


def test_what_another_version_measured_and_finished_is_made_again(
    finished: Path, tiny: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "kept")
    monkeypatch.setattr("mpsearch.run.keys.version", lambda name: "0.0.0")
    again = command(*arguments(tiny, tmp_path / "kept"))
    assert "of another version of mpsearch" in again.err
    assert "is current" not in again.err
    fresh = command("sensitivity", *arguments(tiny, tmp_path / "fresh")[1:])
    assert fresh.code == 0
    name = "sensitivity.safetensors"
    assert (tmp_path / "kept" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert (tmp_path / "kept" / name).read_bytes() != (finished / name).read_bytes()


def test_one_seed_one_result(finished: Path, tiny: Path, tmp_path: Path, command: Command) -> None:
    assert command(*arguments(tiny, tmp_path / "again")).code == 0
    for name in ("front.json", "model-budget.safetensors", "sensitivity.safetensors", "costs.json", "layers.json"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()
    assert command(*arguments(tiny, tmp_path / "other", "--seed", 1)).code == 0
    assert (tmp_path / "other" / "front.json").read_bytes() != (finished / "front.json").read_bytes()


def test_json_is_all_that_goes_to_stdout(finished: Path, tiny: Path, command: Command) -> None:
    result = command(*arguments(tiny, finished, "--json"))
    assert json.loads(result.out) == json.loads((finished / "summary.json").read_text())


def test_step_by_step_gives_the_same_as_run(finished: Path, tiny: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "steps"
    shutil.copytree(finished, out)
    for path in out.rglob("*"):
        if path.is_file() and path.name != "config.toml":
            path.unlink()
    for step in ("search", "finalize"):
        assert command(step, out).code == 0
    alone = arguments(tiny, tmp_path / "alone")[1 : -len(QUICK)]
    assert command("sensitivity", *alone).code == 0
    for name in ("sensitivity.safetensors", "front.json", "model-budget.safetensors"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()
    assert (tmp_path / "alone" / "sensitivity.safetensors").read_bytes() == (
        out / "sensitivity.safetensors"
    ).read_bytes()


def test_a_search_needs_neither_model_nor_images(
    finished: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("the model is loaded")

    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for name in ("front.json", "costs.json"):
        (out / name).unlink()
    monkeypatch.setattr("mpsearch.run.loaded.load_model", refuse)
    monkeypatch.setattr("mpsearch.run.loaded.load_data", refuse)
    done = command("search", out)
    assert done.code == 0, done.err
    assert "sensitivity: cache is current" in done.err
    for name in ("front.json", "costs.json", "layers.json", "config.toml"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()

    config = (out / "config.toml").read_text()
    for old, new in (("seed = 0", "seed = 1"), ("samples = 512", "samples = 48"), ("\n    3,\n", "\n")):
        assert old in config
        (out / "config.toml").write_text(config.replace(old, new, 1))
        assert "the model is loaded" in command("search", out).err
    (out / "config.toml").write_text(config)
    layers = json.loads((out / "layers.json").read_text())
    (out / "layers.json").write_text(json.dumps({name: layers[name] for name in ("format", "fingerprint", "table")}))
    assert "the model is loaded" in command("search", out).err
    (out / "layers.json").write_text(json.dumps({**layers, "fixed_bytes": None}))
    assert "layers.json is damaged" in command("search", out).err


def test_the_problem_is_built_once(
    tiny: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    monkeypatch.setattr("mpsearch.run.steps.build_problem", lambda *a, **k: built.append(1) or build_problem(*a, **k))
    assert command(*arguments(tiny, tmp_path / "out")).code == 0
    assert len(built) == 1


def test_a_cache_of_other_options_is_grown_and_says_so(
    finished: Path, tiny: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    for change, reason in (
        (("--wbits", "2,4,8"), "candidate bits"),
        (("--samples", 48), "images (48 of them judged)"),
        (("--seed", 3), "seed (0)"),
    ):
        shutil.copy(finished / "sensitivity.safetensors", out)
        result = command(*arguments(tiny, out, *change))
        assert result.code == 0
        assert f"of other {reason}" in result.err
        assert ": what is new is measured\n" in result.err
        fresh = tmp_path / change[0] / "fresh"
        assert command("sensitivity", *arguments(tiny, fresh)[1 : -len(QUICK)], *change).code == 0
        assert (fresh / "sensitivity.safetensors").read_bytes() == (out / "sensitivity.safetensors").read_bytes()


def test_more_points_are_finished_and_shown(finished: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    assert command("finalize", out, "--pick", "knee").code == 0
    result: Result = command("finalize", out, "--pick", "0")
    assert result.code == 0
    assert result.out.startswith("point-0:")
    shown = command("front", out)
    assert shown.code == 0
    entry = json.loads((out / "chosen" / "point-0.json").read_text())
    assert f"{entry['size_bytes']:,}" in shown.out
    assert f"{entry['metrics']['finished']['kl']:.4g}" in shown.out
    assert "budget" in shown.out
    assert "knee" in shown.out
    assert "2.two" in shown.out  # who got which bits
    assert command("front", out, "--json").out == (finished / "front.json").read_text()
    (out / "front.png").unlink()
    assert command("front", out, "--plot").code == 0
    assert (out / "front.png").is_file()
    for answer in ("uniform W2", "uniform W8", "greedy", "exact additive", "smallest", "largest"):
        assert answer in shown.out


def test_fronts_are_looked_at_without_model_or_data(finished: Path, tmp_path: Path, command: Command) -> None:
    out, other = tmp_path / "one", tmp_path / "two"
    for folder in (out, other):
        shutil.copytree(finished, folder)
        (folder / "config.toml").unlink()  # what names the model and the data
    assert command("front", out, "--plot").code == 0
    result = command("compare", out, other, "--plot", tmp_path / "both.png")
    assert result.code == 0
    assert "hypervolume" in result.out
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.size == (1080, 672)
    data = json.loads(command("compare", out, other, "--json").out)
    assert [front["run"] for front in data["fronts"]] == ["one", "two"]
    assert all(row[0] == row[1] for row in data["losses"])
    measured = data["fronts"][0]["measured"][0]
    assert measured["name"] == "budget"
    assert measured["cost"] == json.loads((out / "summary.json").read_text())["size_bytes"]


def test_the_page_is_written_from_the_folder_alone(finished: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    (out / "config.toml").unlink()
    (out / "front.html").unlink()
    assert command("explore", out).out == f"{out / 'front.html'}\n"
    where = (str(finished), '"name":"out"'), (str(out), '"name":"copy"')
    known, written = ((path / "front.html").read_text() for path in (finished, out))
    for old, new in zip(*where, strict=True):
        known = known.replace(old, new)
    assert written == known
    both = command("explore", finished, out, "--out", tmp_path / "both.html")
    assert both.code == 0, both.err
    refused(command("explore", finished, out), "--out front.html")
    refused(command("explore", out, "--out", tmp_path / "page.txt"), "--out must name an .html file", "page.txt")
    refused(command("explore", out, "--out", tmp_path / "no" / "page.html"), "cannot write", "--out")
    refused(command("explore", tmp_path / "nothing"), "nothing has no front.json", "mpsearch run")
    (out / "front.html").unlink()
    (out / "front.html").mkdir()
    refused(command("explore", out), "cannot write", "front.html")


def test_a_configuration_is_explained(finished: Path, tmp_path: Path, command: Command) -> None:
    chosen = json.loads((finished / "chosen" / "budget.json").read_text())
    by_name = json.loads(command("why", finished, "budget", "--json").out)
    assert by_name["size_bytes"] == chosen["size_bytes"]
    total = sum(layer["alone"] + layer["together"] for layer in by_name["layers"])
    assert total == pytest.approx(by_name["loss"])
    assert {layer["layer"]: layer["precision"] for layer in by_name["layers"]} == chosen["config"]
    (tmp_path / "bits.json").write_text(json.dumps({name: int(p[1]) for name, p in chosen["config"].items()}))
    by_file = json.loads(command("why", finished, tmp_path / "bits.json", "--json").out)
    assert {**by_file, "name": "budget"} == by_name
    front = ParetoFront.from_json((finished / "front.json").read_text())
    by_number = json.loads(command("why", finished, front.best(), "--json").out)
    assert by_number["loss"] == by_name["loss"]
    shown = command("why", finished, "knee").out
    assert "…" not in shown
    assert "strongest interactions" in shown
    assert max(map(len, shown.splitlines())) <= 110


def test_rules_reach_the_finished_file(finished: Path, tiny: Path, tmp_path: Path, command: Command) -> None:
    rules = ("--fix", "2.one=6", "--fix", "3.one!=2,3", "--tie", "2.two,3.two")
    assert command(*arguments(tiny, tmp_path / "out", *rules, "--size-budget", 5_600)).code == 0
    again = command(*arguments(tiny, tmp_path / "out", *rules, "--size-budget", 5_600))
    assert "front is current" in again.err
    front = ParetoFront.from_json((tmp_path / "out" / "front.json").read_text())
    for index in range(len(front)):
        config = front.config(index)
        assert config["2.one"].w == 6
        assert config["3.one"].w >= 4
        assert config["2.two"] == config["3.two"]
    chosen = json.loads((tmp_path / "out" / "chosen" / "budget.json").read_text())
    assert chosen["config"]["2.one"] == "W6A32"
    assert tomllib.loads((tmp_path / "out" / "config.toml").read_text())["fix"] == ["2.one=6", "3.one!=2,3"]
    for step in json.loads(command("why", tmp_path / "out", "budget", "--json").out)["layers"]:
        if step["layer"] == "2.one":
            assert step["up"] is None
            assert step["down"] is None


def test_bit_assignments_are_exported(finished: Path, tmp_path: Path, command: Command) -> None:
    config = json.loads((finished / "chosen" / "budget.json").read_text())["config"]
    assert json.loads(command("export", finished).out) == {"budget": config}
    rows = list(csv.DictReader(io.StringIO(command("export", finished, "--format", "csv").out)))
    assert {row["layer"]: f"W{row['weight_bits']}A{row['activation_bits']}" for row in rows} == config
    assert command("export", finished, "--out", tmp_path / "bits.json").out == ""
    assert json.loads((tmp_path / "bits.json").read_text()) == {"budget": config}


def test_layers_are_listed(tiny: Path, command: Command) -> None:
    result = command("layers", "--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data")
    assert result.code == 0
    assert "2.one" in result.out
    table = LayerTable.from_json(json.loads(command("layers", "--model", f"{tiny / 'net.py'}:net", "--data",
                                                    tiny / "data", "--json").out))  # fmt: skip
    assert f"{table.macs:,}" in result.out


def test_weights_replace_those_of_the_factory(finished: Path, tiny: Path, tmp_path: Path, command: Command) -> None:
    assert command(*arguments(tiny, tmp_path / "out", "--weights", tiny / "net.pt")).code == 0
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in (finished, tmp_path / "out"))
    assert first["metrics"]["finished"]["kl"] == second["metrics"]["finished"]["kl"]
    assert second["weights"] == str(tiny / "net.pt")


def test_an_interrupted_run_goes_on(
    finished: Path, tiny: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, saves = tmp_path / "out", []
    save = Progress.save

    def interrupted(self: Progress, *rest: object) -> None:
        save(self, *rest)  # type: ignore[arg-type]
        saves.append(rest)
        if len(saves) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "save", interrupted)
        result = command(*arguments(tiny, out))
    assert result.code == 130
    assert "interrupted; the same command goes on" in result.err
    assert (out / "finalize-budget.partial").is_file()
    assert command(*arguments(tiny, out)).code == 0
    assert (out / "model-budget.safetensors").read_bytes() == (finished / "model-budget.safetensors").read_bytes()
    assert {path.name for path in out.iterdir()} == FILES


def test_a_network_is_finished_without_any_images(tiny: Path, tmp_path: Path, command: Command) -> None:
    options = ("--model", f"{tiny}/net.py:net", "--data", "distilled", "--samples", "32", *QUICK, "--out", tmp_path)
    done = command("run", "--size-budget", "6kB", *options, "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["data"] == "32 images distilled from the network's batch norms; no image was given"
    assert set(summary["metrics"]["finished"]) == {"agreement", "kl"}
    assert summary["labelled"] is False
    assert summary["metrics"]["finished"]["kl"] < summary["metrics"]["plain"]["kl"]
    again = command("run", "--size-budget", "6kB", *options, "--json")
    assert json.loads(again.out) == summary
    assert "distillation" not in again.err
