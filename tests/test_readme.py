"""The README shows nothing that is not so: commands, options, files, pictures and numbers."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mpsearch
from mpsearch.cli.main import application
from mpsearch.tasks.registry import load_task

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
RESULTS = ROOT / "benchmarks" / "results"
HARDWARE, PREDICTION, RECONSTRUCTION, TASKS, TROUBLE, GUIDE, METHOD, FIGURES = (
    (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    for name in (
        "hardware", "prediction", "reconstruction", "tasks", "troubleshooting", "guide", "method", "results"
    )
)  # fmt: skip
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def commands(page: str) -> list[str]:
    """Every `mpsearch …` command line in a page's code blocks."""
    blocks = "\n".join(re.findall(r"(?:^    .*\n)+", page, re.MULTILINE))
    return re.findall(r"mpsearch ((?:[a-z-]+) ?[^#\n&|]*)", blocks)


def options() -> dict[str, set[str]]:
    """Every option of every command."""
    whole: Any = typer.main.get_command(application())
    return {name: {text for option in one.params for text in option.opts} for name, one in whole.commands.items()}


@pytest.mark.parametrize("page", [README, HARDWARE, GUIDE], ids=["README.md", "hardware.md", "guide.md"])
def test_every_command_and_option_exists(page: str) -> None:
    found = commands(page)
    assert any(command.startswith("run --model mobilenetv2") for command in found)
    there = options()
    for command in found:
        name, *rest = command.split()
        assert name in there, command
        for option in (part for part in rest if part.startswith("--")):
            assert option in there[name], f"{command}: no option {option}"


def test_every_option_in_the_text_exists() -> None:
    there = set().union(*options().values())
    for page in (README, TASKS, TROUBLE, GUIDE):
        for option in set(re.findall(r"`(--[a-z-]+)", page)) - {"--debug"}:
            assert option in there, option


def python_blocks(page: str) -> list[str]:
    """Every Python block of a page."""
    return re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


class Classifier(nn.Module):
    """Three classes of images with one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return 50 * self.head(self.body(x).mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(64, 1, 10, 10, generator=torch.Generator().manual_seed(0))


def test_the_python_of_the_readme_runs(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = Classifier().eval()
    labelled = DataLoader(TensorDataset(images, model(images).argmax(1)), 16)
    names = {"model": model, "loader": DataLoader(images, 16), "labelled": labelled, "images": images}
    for block in python_blocks(README):
        exec(compile(block, "README.md", "exec"), names)
        low_bit = names["low_bit"]
        assert isinstance(low_bit, nn.Module)
        assert low_bit(images).shape == (64, 3)
    assert len(python_blocks(README)) == 2
    assert "top1" in capsys.readouterr().out
    assert {"front.png", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}


class Pose(nn.Module):
    """Where something is, and whether it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.head(self.body(x).mean((2, 3)))
        return {"position": z[:, :2], "visible": z[:, 2:]}


def test_the_task_of_the_page_is_one(images: Tensor, tmp_path: Path) -> None:
    block, _ = python_blocks(TASKS)
    (tmp_path / "pose.py").write_text(block)
    torch.manual_seed(0)
    model = Pose().eval()
    validation = [(images, {"position": model(images)["position"].detach()})]
    front = mpsearch.search(
        model,
        [images],
        "2kB",
        validation=validation,
        task=load_task(f"{tmp_path}/pose.py:task"),
        edges="free",
        wbits=(2, 4),
        samples=32,
        population=16,
        generations=4,
    )
    metrics = front.finish().metrics
    assert metrics["float"]["near"] == 100
    assert set(metrics["finished"]) == {"near", "kl"}


def test_the_detector_of_the_page_says_where_things_are(tmp_path: Path) -> None:
    (tmp_path / "cells.py").write_text(python_blocks(TASKS)[1])
    task = load_task(f"{tmp_path}/cells.py:task")
    z = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    z[..., 2:4] = z[..., :2] + 4 + z[..., 2:4].abs()
    z[..., 10:12] = z[..., 8:10] + 4 + z[..., 10:12].abs()
    likelihood = task.likelihood_of(z)
    moved = z.clone()
    moved[0, :, 8:] += 0.1  # the second anchor of the first image
    nats = likelihood.divergence({"": z}, {"": moved})
    assert nats[0] > 0
    assert nats[1:].tolist() == [0, 0]
    metric = task.metrics_of(likelihood, True)[0].start()
    boxes, scores = z[:1].unflatten(2, (2, 8)).flatten(1, 2)[0].split((4, 4), 1)
    best = int((scores[:, :1].sigmoid() * scores[:, 1:].sigmoid()).amax(1).argmax())
    truth = {"boxes": boxes[best : best + 1], "labels": scores[best, 1:].argmax()[None]}
    metric.add(z[:1], [truth], z[:1])
    assert metric.value() == pytest.approx(100)


def texts(node: ast.AST) -> str:
    """A string of the code, with … for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(texts(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    code = "\n".join(
        texts(node)
        for package in ("mpsearch", "recon")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    )
    messages = re.findall(r"^\| `(.*?)` \|", TROUBLE, re.MULTILINE)
    assert len(messages) > 30
    for message in messages:
        for part in message.split("…"):
            assert part.strip(" ;:,()") in code, message


def notebook_cells() -> list[dict[str, Any]]:
    """The cells of the tutorial."""
    cells: list[dict[str, Any]] = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text("utf-8"))["cells"]
    return cells


def test_the_tutorial_has_its_results() -> None:
    code = [cell for cell in notebook_cells() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "/root/" not in json.dumps(outputs)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()  # raises where a cell fails


def test_the_two_commands_are_what_ci_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "pip install . && mpsearch run --model mobilenetv2 --size-budget 1.5MB" in README
    assert "pip install '.[dev]' && pytest -n 2" in README
    assert "mpsearch run --model mobilenetv2 --size-budget 1.5MB" in script
    assert "pip install --quiet '.[dev]'" in script
    assert re.search(r"^pytest -n 2$", script, re.MULTILINE)
    assert "mkdocs build --strict" in script


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_picture_is_one() -> None:
    with Image.open(ROOT / "docs" / "front.png") as picture:
        picture.load()
        assert picture.size == (1080, 840)


@pytest.mark.parametrize(
    ("benchmark", "words", "page"),
    [
        ("bench_run", "table", FIGURES),
        ("bench_fidelity", "page", PREDICTION),
        ("bench_sensitivity", "text", PREDICTION),
        ("bench_weighting", "table", PREDICTION),
        ("bench_reconstruction", "brief", README),
        ("bench_reconstruction", "page", RECONSTRUCTION),
    ],
)
def test_tables_are_the_measured_ones(benchmark: str, words: str, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    written = getattr(importlib.import_module(benchmark), words)
    assert written(json.loads((RESULTS / f"{benchmark}.json").read_text("utf-8"))) in page


def test_the_figures_in_the_text_are_the_measured_ones() -> None:
    text = " ".join(f"{README} {FIGURES} {METHOD}".split())
    results = json.loads((RESULTS / "bench_run.json").read_text("utf-8"))
    whole = results["imagenet"]
    top1 = {name: f"{whole[f'top1_{name}']:.2f} %" for name in ("float", "reconstructed", "nearest")}
    assert f"float {top1['float']}) in 1.5 MB, every byte of the file counted, keeps {top1['reconstructed']}" in text
    assert f"the same bits keeps {top1['nearest']}. It takes {whole['wall_seconds']:.0f} s" in text
    official = results["imagenet_official"]
    assert f"on the {official['images']} of them" in text
    assert (
        f"float reaches {official['top1_float']:.2f} % and the 1.5 MB file {official['top1_reconstructed']:.2f} %"
        in text
    )
    assert f"it loses {official['lost']} of them and wins {official['won']}" in text
    assert f"this file holds {results['imagenet']['weights_only_bytes'] / 2**20:.2f} MiB of weights" in text
    for row in results["embedded_uniform"]:
        assert f"{row['bits']} bits {row['top1_nearest']:.2f} → {row['top1_reconstructed']:.2f} %" in text
    fidelity = json.loads((RESULTS / "bench_fidelity.json").read_text("utf-8"))
    counts = [len(row["configurations"]) for row in fidelity["rows"].values()]
    assert f"of {min(counts)} to {max(counts)} configurations" in text

    def taus(network: str, predictor: str) -> str:
        rows = [row["predictors"] for name, row in fidelity["rows"].items() if name.startswith(network)]
        found = [one["finalized"]["tau"] for row in rows for one in row if one["predictor"].startswith(predictor)]
        assert len(found) == 3
        return ", ".join(f"{tau:.2f}" for tau in found)

    assert f"is {taus('mobilenetv2', 'ours')} on MobileNetV2 at 1.1, 1.5, 2.0 MB" in text
    assert f"(BRECQ's terms: {taus('mobilenetv2', 'BRECQ')})" in text
    assert f"and {taus('resnet20', 'ours')} on ResNet-20 at 90, 110, 140 kB" in text
    assert f"(BRECQ's terms: {taus('resnet20', 'BRECQ')})" in text
    chance, *agreed = (row["agreement"] for name, row in fidelity["rows"].items() if name.startswith("resnet20"))
    assert "do not agree at 90 kB" in text
    assert chance["tau"] < 0.1
    ceilings = ", ".join(f"{one['ceiling']:.2f}" for one in agreed)
    assert f"{ceilings} is the most to be had" in text
    excess: dict[str, float] = {}  # of finished picks over the least, at the worst budget
    for row in fidelity["rows"].values():
        kl = {o["predictor"]: np.mean([run["kl"] for run in o["finished"]]) for o in row["predictors"] if "pick" in o}
        for name, value in kl.items():
            excess[name] = max(excess.get(name, 0.0), float(value / min(kl.values()) - 1))
    (ours,) = (name for name in excess if name.startswith("ours"))
    (brecq,) = (name for name in excess if name.startswith("BRECQ"))
    others = min(value for name, value in excess.items() if name != ours)
    assert f"at most {100 * excess[ours]:.0f} % more than the best" in text
    assert f"up to {100 * others:.0f} % or more" in text
    assert f"(BRECQ's terms: {100 * excess[brecq]:.0f} %)" in text
    assert excess[ours] < 0.5 * others


CHANCE = 0.3  # points: a third more than one standard deviation at W4A4, where 165 of 5,000 images change class
SHORT = {("resnet20", "W4A32"): 0.36}  # points that are missing there, with three seeds of each: docs/reconstruction.md


def test_figures_of_detectors_codes_and_runtimes_are_the_measured_ones() -> None:
    text = " ".join(README.split())
    read = {
        name: json.loads((RESULTS / f"bench_{name}.json").read_text("utf-8"))
        for name in ("coding", "detection", "export")
    }
    (coded,) = (
        row
        for row in read["coding"]["networks"]
        if (row["network"], row["budget"], row["seed"]) == ("mobilenetv2", "1.5MB", 0)
    )
    assert f"keeps {coded['top1']:.2f} % in the same 1.5 MB" in text
    rows = read["detection"]["rows"]

    def points(method: str) -> list[str]:
        names = [f"yolox_nano {bits} {method} 0" for bits in ("W8A8", "W4A8", "W3A32")]
        return [f"{rows[name]['metrics']['map']:.1f}" for name in names]

    first, second, third = points("ours")
    assert f"mAP {rows['yolox_nano float']['metrics']['map']:.1f} in float" in text
    assert (
        f"{first} with 8-bit weights and activations, {second} with 4-bit weights, {third} with 3-bit weights alone"
        in text
    )
    first, second, third = points("plain")
    assert f"keeps {first}, {second} and {third}." in text
    ratio = {(row["network"], row["bits"]): f"{row['ratio']:.2f}" for row in read["export"]["networks"]}
    assert f"runs {ratio['MobileNetV2', 'W8A8']} times as fast as in float" in text
    assert f"weights and {ratio['MobileNetV2', 'W4A8']} times with 4-bit ones" in text
    assert f"ResNet-18 {ratio['ResNet-18', 'W8A8']} and {ratio['ResNet-18', 'W4A8']} times" in text


def test_reconstruction_beats_the_published_recipe_in_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    mean = importlib.import_module("bench_reconstruction").mean
    results = json.loads((RESULTS / "bench_reconstruction.json").read_text("utf-8"))
    recipes = [name.split(" ") for name in results["rows"] if "brecq-2000 " in name or "brecq-20000 " in name]
    assert len(recipes) > 10
    for network, bits, method, _ in recipes:
        recipe, ours = (mean(results, network, bits, one) for one in (method, "ours"))
        assert ours["top1"] >= recipe["top1"] - SHORT.get((network, bits), CHANCE), (network, bits)
        assert ours["kl"] < recipe["kl"], (network, bits)
        if "gpu" not in recipe:
            assert ours["seconds"] < (0.1 if method == "brecq-2000" else 0.01) * recipe["seconds"], (network, bits)


def test_the_ceiling_is_what_a_perfect_predictor_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    agreed = importlib.import_module("bench_fidelity").agreed
    rng = np.random.default_rng(0)
    for noise in (0.3, 1.0, 2.0):
        truth = rng.normal(size=4000)
        runs = truth[:, None] + noise * rng.normal(size=(4000, 2))
        assert agreed(runs)["ceiling"] == pytest.approx(kendalltau(truth, runs.mean(1))[0], abs=0.03)


def test_the_cache_costs_what_was_promised_and_grows_linearly() -> None:
    results = json.loads((RESULTS / "bench_sensitivity.json").read_text("utf-8"))
    whole = results["fresh"][0]
    assert (whole["layers"], whole["candidates"], whole["images"]) == (53, 5, 256)
    shown = f"take {whole['seconds']:.0f} s and {whole['peak_rss_bytes'] / 2**30:.1f} GiB"
    assert f"53 layers at 5 widths on 256 images {shown}" in " ".join(METHOD.split())
    assert whole["seconds"] <= 180
    assert whole["peak_rss_bytes"] <= 2 * 2**30
    assert results["linear"]["r2"] >= 0.98
    assert results["grown"]["one_candidate_more"] + results["grown"]["images_more"] < results["grown"]["fresh"]


def test_sums_of_measured_layers_are_near_the_measured_networks() -> None:
    rows = json.loads((RESULTS / "bench_profile.json").read_text("utf-8"))["rows"]
    assert len({row["network"] for row in rows}) == 3
    for row in rows:
        assert abs(row["error"]) <= 0.15, row
        figures = f"{row['predicted_ms']:.2f} ms | {row['measured_ms']:.2f} ms | {100 * row['error']:+.1f} %"
        assert f"| {row['network']} | {row['precision']} | {figures} |" in HARDWARE


def test_the_result_meets_what_was_promised() -> None:
    results = json.loads((RESULTS / "bench_run.json").read_text("utf-8"))
    for key, seconds in (("imagenet", 1800), ("embedded", 240)):
        row = results[key]
        assert row["size_bytes"] <= 1_500_000
        assert row["wall_seconds"] <= seconds
        assert row["peak_rss_bytes"] <= 8 * 2**30
    assert results["imagenet"]["top1_float"] - results["imagenet"]["top1_reconstructed"] <= 3
    assert results["imagenet"]["kl_reconstructed"] <= 0.08
    by_bits = {row["bits"]: row for row in results["embedded_uniform"]}
    truth = results["embedded"]["top1_float"]
    assert 85 <= truth <= 95
    assert truth - by_bits[4]["top1_reconstructed"] < 2
    assert truth - by_bits[2]["top1_nearest"] > 30
    assert by_bits[2]["top1_reconstructed"] - by_bits[2]["top1_nearest"] > 20


def test_the_search_is_as_near_the_truth_as_the_text_says() -> None:
    text = " ".join(METHOD.split())
    results = json.loads((RESULTS / "bench_search.json").read_text("utf-8"))
    worst = results["worst"]
    assert f"{100 * worst['hypervolume_share']:.1f} % of the exact front's hypervolume" in text
    assert f"within {100 * worst['gap_to_bound_mobilenetv2']:.1f} % of a lower bound" in text
    assert f"{results['evaluation']['configs_per_second'] / 1e6:.1f} million configurations a second" in text
    assert f"take {worst['cpu_seconds']:.1f} s of processor time" in text
    assert worst["hypervolume_share"] >= 0.999
    assert worst["largest_loss_gap"] <= 0.005
    assert worst["found_over_exact_small"] <= 1e-9
    assert worst["found_over_best_plain"] <= 1 + 1e-12
    assert results["evaluation"]["configs_per_second"] >= 1e6
    assert results["large"]["search_seconds"] < 120
    assert results["large"]["peak_rss_bytes"] < 4 * 2**30
