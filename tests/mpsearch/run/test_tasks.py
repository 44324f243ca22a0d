"""Tasks, labels and outputs of other kinds, through the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import Command, refused

QUICK = ("--steps", 4, "--population", 20, "--generations", 5, "--samples", 48)

CODE = """
import os
import sys
import torch
from torch import nn
sys.path.insert(0, os.path.dirname(__file__))
from net import net

class Ended(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.body, self.end = net(), end

    def forward(self, x):
        return self.end(self.body(x))

def softmax():
    return Ended(lambda z: z.softmax(1))

def squashed():
    return Ended(lambda z: (z.tanh() + 1) / 2)

def noisy():
    return Ended(lambda z: z * (1 + 6e-4 * (torch.rand_like(z) - 0.5)))

def talking():
    print("a factory prints")
    os.system("echo a program prints")
    return net()

class Talking(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        print("a forward pass prints")
        return self.body(x)

def dead():
    model = net()
    with torch.no_grad():
        model[2].norm.bias.fill_(-50)
    return model

print("a module prints")
"""

TASK = """
from mpsearch.tasks.metric import mean_metric
from mpsearch.tasks.task import Task
from recon.likelihood.heads import Gaussian
from recon.likelihood.likelihood import Likelihood

def measure(outputs, targets):
    print("a metric prints")
    return (outputs.argmax(1) - targets).abs()

def task():
    far = mean_metric("class_distance", measure, unit="classes", higher_is_better=False)
    near = mean_metric("within_one", lambda z, y: measure(z, y) <= 1, higher_is_better=True)
    return Task("ordinal", Likelihood((Gaussian(sigma=2.0),)), (far, near))
"""


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name in ("net.py", "net.json"):
        shutil.copy(tiny / name, folder)
    (folder / "ends.py").write_text(CODE)
    (folder / "task.py").write_text(TASK)
    shutil.copy(folder / "net.json", folder / "ends.json")
    shutil.copytree(tiny / "data", folder / "data")
    x = np.load(tiny / "data" / "val.npz")
    (folder / "unlabelled").mkdir()
    shutil.copy(tiny / "data" / "calib.npz", folder / "unlabelled")
    np.savez(folder / "unlabelled" / "val.npz", x=x["x"])
    (folder / "wrong").mkdir()
    shutil.copy(tiny / "data" / "calib.npz", folder / "wrong")
    np.savez(folder / "wrong" / "val.npz", x=x["x"], y=np.random.default_rng(0).permutation(x["y"]))
    return folder


def options(place: Path, out: Path, model: str, *more: object, data: str = "data") -> tuple[object, ...]:
    return ("--model", f"{place}/{model}", "--data", place / data, "--out", out, *more)


def run(place: Path, out: Path, model: str, *more: object, data: str = "data") -> tuple[object, ...]:
    return ("run", *options(place, out, model, "--size-budget", 5_200, *QUICK, *more, data=data))


def summary(place: Path, out: Path, command: Command, model: str, *more: object, data: str = "data") -> dict[str, Any]:
    result = command(*run(place, out, model, *more, "--json", data=data))
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_probabilities_are_found_as_the_same_as_logits(place: Path, tmp_path: Path, command: Command) -> None:
    found = {}
    for model in ("net.py:net", "ends.py:softmax"):
        out = tmp_path / model
        done = command("reconstruct", *options(place, out, model, "--bits", 2, "--steps", 20, "--json"))
        assert done.code == 0, done.err
        found[model] = json.loads(done.out)["metrics"]
    plain, ended = found.values()
    for state in ("float", "plain", "finished"):
        assert ended[state] == pytest.approx(plain[state], rel=0.1, abs=1e-9)  # sure probabilities are coarse
    assert command(*run(place, tmp_path / "run", "ends.py:softmax")).code == 0
    heads = json.loads((tmp_path / "run" / "layers.json").read_text())["heads"]
    assert heads == [{"kind": "Categorical", "part": "", "dim": 1, "form": "probabilities"}]


def test_outputs_that_nobody_can_tell_are_asked_for(place: Path, tmp_path: Path, command: Command) -> None:
    refused(command(*run(place, tmp_path, "ends.py:squashed")), "independent probabilities?", "choose another --task")
    refused(command(*run(place, tmp_path, "net.py:net", "--task", "clasification")), "no task 'clasification'")
    refused(command(*run(place, tmp_path, "net.py:net", "--task", "segmentation")), "segmentation expects one map")


def test_without_labels_it_is_the_float_network_that_counts(place: Path, tmp_path: Path, command: Command) -> None:
    found = summary(place, tmp_path, command, "net.py:net", data="unlabelled")
    assert [figure["name"] for figure in found["judged_by"]] == ["agreement", "kl"]
    assert found["metrics"]["float"] == {"agreement": 100.0, "kl": 0.0}
    assert 0 < found["metrics"]["finished"]["agreement"] <= 100
    report = (tmp_path / "report.txt").read_text()
    assert "200 validation samples, without labels" in report
    assert "top-1" not in report
    assert "agreement" in command("front", tmp_path).out
    done = command("reconstruct", *options(place, tmp_path / "uniform", "net.py:net", "--bits", 3, data="unlabelled"))
    assert done.code == 0
    assert "agreement" in done.out
    assert "float" not in done.out


def test_labels_of_other_samples_do_not_look_like_quantization(place: Path, tmp_path: Path, command: Command) -> None:
    result = command(*run(place, tmp_path, "net.py:net", data="wrong"))
    assert result.code == 0
    assert result.err.count("guessing gives") == 1
    assert result.err.index("guessing gives") < result.err.index("sensitivity: started")  # before the hours of work
    line = command("finalize", tmp_path).out
    assert line.startswith("budget: ")
    assert "float " in line
    assert "plain rounding " in line


def test_a_network_that_draws_is_noted(place: Path, tmp_path: Path, command: Command) -> None:
    result = command("reconstruct", *options(place, tmp_path, "ends.py:noisy", "--bits", 4, "--steps", 2))
    assert result.code == 0, result.err
    assert "random in eval mode" in result.err


def test_a_task_of_ones_own(place: Path, tmp_path: Path, command: Command) -> None:
    out, reference = tmp_path / "out", f"{place}/task.py:task"
    found = summary(place, out, command, "net.py:net", "--task", reference)
    assert [figure["name"] for figure in found["judged_by"]] == ["class_distance", "within_one", "kl"]
    assert found["judged_by"][0] == {
        "name": "class_distance", "unit": "classes", "higher_is_better": False, "labelled": True,
    }  # fmt: skip
    assert found["metrics"]["float"] == {"class_distance": 0.0, "within_one": 1.0, "kl": 0.0}
    assert json.loads((out / "layers.json").read_text())["heads"][0]["sigma"] == 2.0
    report = (out / "report.txt").read_text()
    for line in ("class distance float", "within one reconstructed", "KL plain rounding"):
        assert line in report
    shown = command("front", out)
    assert "class distance" in shown.out
    assert "classes" in shown.out
    shutil.copytree(out, tmp_path / "twin")
    assert "class distance" in command("compare", out, tmp_path / "twin").out
    exported = command("export", out)
    assert set(json.loads(exported.out)) == {"budget"}
    assert "class distance" in exported.err
    again = command(*run(place, out, "net.py:net", "--task", reference))
    assert "sensitivity: cache is current" in again.err
    assert "is current" in again.err.partition("finalize: ")[2]


def test_another_task_is_another_sensitivity(place: Path, tmp_path: Path, command: Command) -> None:
    summary(place, tmp_path, command, "net.py:net")
    changed = command(*run(place, tmp_path, "net.py:net", "--task", "embedding"))
    assert changed.code == 0, changed.err
    assert "of other images, weights, task or quantizer" in changed.err
    assert "is current" not in changed.err
    assert "cosine" in (tmp_path / "report.txt").read_text()
    fresh = command("sensitivity", *run(place, tmp_path / "fresh", "net.py:net", "--task", "embedding")[1:])
    assert fresh.code == 0
    name = "sensitivity.safetensors"
    assert (tmp_path / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_what_user_code_prints_does_not_get_between_results(place: Path, tmp_path: Path) -> None:
    for number, (model, *more) in enumerate(
        [
            ("ends.py:talking", "--task", f"{place}/task.py:task"),
            ("ends.py:Talking",),
        ]
    ):
        arguments = run(place, tmp_path / str(number), model, *more, "--json")
        command = [sys.executable, "-m", "mpsearch", *map(str, arguments)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["size_bytes"] <= 5_200
        assert "a module prints" in done.stderr
        expected = ("a forward pass prints",) if number else ("a factory prints", "a program prints", "a metric prints")
        for text in expected:
            assert text in done.stderr


def test_results_go_where_stdout_leads(place: Path, command: Command) -> None:
    model = ("--model", f"{place}/ends.py:Talking", "--data", place / "data")
    result = command("layers", *model, "--json")
    assert result.code == 0
    assert len(json.loads(result.out)["layers"]) == 6
    assert "a forward pass prints" in result.err
    shown = command("layers", *model)
    assert "prints" not in shown.out
    assert "body.2.one" in shown.out


def test_a_dead_layer_has_the_fewest_bits(place: Path, tmp_path: Path, command: Command) -> None:
    found = summary(place, tmp_path, command, "ends.py:dead")
    assert found["metrics"]["finished"]["kl"] <= found["metrics"]["plain"]["kl"]
    config = json.loads((tmp_path / "chosen" / "budget.json").read_text())["config"]
    assert {name: config[name] for name in ("2.one", "2.two")} == {"2.one": "W2A32", "2.two": "W2A32"}


def test_run_folders_of_an_older_format_are_refused(place: Path, tmp_path: Path, command: Command) -> None:
    summary(place, tmp_path, command, "net.py:net")
    layers = json.loads((tmp_path / "layers.json").read_text())
    assert layers.pop("format") == 2
    (tmp_path / "layers.json").write_text(json.dumps(layers))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    reason = ("older version of mpsearch", "format 1", "--out")
    for step in ("search", "finalize", "front", "export"):
        refused(command(step, tmp_path), *reason)
    refused(command("why", tmp_path, "budget"), *reason)
    refused(command("compare", tmp_path, tmp_path), *reason)
    refused(command(*run(place, tmp_path, "net.py:net")), *reason)
    refused(command("reconstruct", *options(place, tmp_path, "net.py:net", "--bits", 4)), *reason)
    assert before == {path: path.read_bytes() for path in before}
