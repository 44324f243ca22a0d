"""Benchmarks do not rot: every one imports, and its cheap parts run on a network of seconds."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from synthetic import at_fraction, problem

from mpsearch.files.folder import RunFolder
from mpsearch.optimization.build import build_problem
from mpsearch.request.options import RunOptions
from mpsearch.run.steps import Run
from mpsearch.show.console import Console
from mpsearch.sources import demo
from recon.graph.samples import Samples

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.slow
FACTORY = """
import torch
from torch import nn

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return torch.relu(x + self.two(torch.relu(self.one(x))))

def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), Residual(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                          nn.Linear(32, 5))
    with torch.no_grad():
        model[-1].weight *= 10
    return model.eval()
"""
Load = Callable[[str], Any]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Imports a benchmark by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))  # which one of them sets
    return importlib.import_module


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A factory of a network with four layers, and a folder with 256 + 32 images for it."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "net.py").write_text(FACTORY)
    (folder / "net.json").write_text('{"input_size": [3, 12, 12], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}')
    rng = np.random.default_rng(0)
    for name, count in (("calib", 256), ("val", 32)):
        x = np.kron(rng.integers(0, 256, (count, 4, 4, 3)), np.ones((1, 3, 3, 1))).astype(np.uint8)
        np.savez(folder / f"{name}.npz", x=x, y=rng.integers(0, 5, count))
    return f"{folder}/net.py:net", str(folder)


@pytest.fixture
def job(given: tuple[str, str]) -> Run:
    """That network, as `networks.start` gives the real ones."""
    model, data = given
    options = RunOptions(model=model, data=data, size_budget_bytes=1, wbits=(2, 3, 4, 6, 8), samples=256, edges="free")
    return Run(options, RunFolder(Path("unused")), Console())


def kept(name: str) -> Any:
    """The results of a benchmark as they are stored."""
    return json.loads((BENCHMARKS / "results" / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_benchmark_imports(name: str, benchmark: Load) -> None:
    assert isinstance(benchmark(name), ModuleType)


@pytest.mark.parametrize("how", ["W4A32 plain", "W2A4 ours", "W3A32 ours-layer", "W4A4 brecq-2", "W4A32 adaround-2"])
def test_a_row_of_reconstruction_has_the_stored_shape(
    how: str, benchmark: Load, job: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmark("bench_reconstruction")
    monkeypatch.setattr(module, "start", lambda network: job)
    row = module.measure(f"resnet20 {how} 0")
    assert set(row) - {"gpu", "peak_gpu_bytes"} | {"peak_rss_bytes"} == set(
        kept("bench_reconstruction")["rows"]["resnet20 W4A32 ours 0"]
    )
    assert row["validation_images"] == 32
    right = module.rights({"rows": {f"resnet20 W4A32 ours {seed}": row for seed in range(3)}}, "resnet20", "W4A32")
    assert 100 * right.mean(1) == pytest.approx([row["top1"]] * 3)


def test_steps_are_timed_by_block(benchmark: Load, job: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("bench_reconstruction")
    monkeypatch.setattr(module, "start", lambda network: job)
    monkeypatch.setattr(module, "STEPS", 1)
    ratios = module.measure_steps("resnet20")["ratios"]
    assert {bits: list(found) for bits, found in ratios.items()} == {
        bits: [unit.name for unit in job.loaded.network.units] for bits in ("W4A32", "W4A4")
    }
    assert min(min(found.values()) for found in ratios.values()) > 0


def test_a_new_row_enters_results_and_pages(
    benchmark: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = benchmark("bench_reconstruction")
    results = kept("bench_reconstruction")
    name = "efficientnet_lite0 W3A32 ours 0"
    assert name in module.rows()
    results["rows"].pop(name, None)
    row = {**results["rows"]["mobilenetv2 W3A32 ours 0"], "top1": 12.34}
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results.json")
    module.RESULTS.write_text(json.dumps(results))
    (tmp_path / "docs").mkdir()
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "reconstruction.md"
    readme.write_text(f"before\n\n{module.brief(results)}\n\nafter\n")
    page.write_text(f"before\n\n{module.page(results)}\n\nafter\n")
    found = module.keep(name, row)
    assert found == json.loads(module.RESULTS.read_text())
    assert "| efficientnet_lite0, W3A32 |" in readme.read_text()
    assert "| W3A32 | ours | 12.34 % |" in page.read_text()
    assert all(path.read_text().endswith("\n\nafter\n") for path in (readme, page))
    assert not capsys.readouterr().err


def test_predictors_predict_what_a_measurer_measures(
    benchmark: Load, job: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, predictors = benchmark("bench_fidelity"), benchmark("predictors").predictors
    monkeypatch.setattr(module, "start", lambda network: job)
    monkeypatch.setitem(module.FINALIZED, "resnet20", (16, 2))
    monkeypatch.setattr(module, "RESAMPLED", 5)
    known = predictors(job)
    row = next(iter(kept("bench_fidelity")["rows"].values()))
    assert [one.name for one in known] == [one["predictor"] for one in row["predictors"]]

    free = module.SensitivityTable.unmeasured(job.table.names, job.candidates.precisions)
    least = build_problem(job.table, job.costs, free).values(np.zeros((1, 4), np.int16))[0, 1]
    tight = build_problem(job.table, job.costs, free, budgets={"size_bytes": float(least) + 200})
    picks = [one.best(tight) for one in known]
    assert picks[0] is None
    assert all(pick is not None and tight.feasible(pick[None])[0] for pick in picks[1:])

    genomes: NDArray[np.int16] = np.random.default_rng(0).integers(0, 5, (6, 4)).astype(np.int16)
    measurer = module.Measurer("resnet20")
    texts = [module.as_bits(job, genome) for genome in genomes]
    measured = {bits: [measurer(bits, run) for run in range(2)] for bits in texts}
    done = dict.fromkeys(module.as_bits(job, pick) for pick in picks[1:])
    finished = {bits: [measurer.finish(bits, 0)] for bits in done}
    made = module.compare(job, tight, known, picks, genomes, measured, finished)
    assert set(made) == {"configurations", "agreement", "predictors"}
    assert [set(one) for one in made["predictors"]] == [set(one) for one in row["predictors"]]
    tau = next(one for one in made["predictors"] if one["predictor"].startswith("ours"))["plain"]["tau"]
    assert tau > 0.5
    assert "| ours: full Fisher steadied, inter-layer shrunk |" in module.table(made)


def test_the_cache_is_timed_cut_down_and_grown(benchmark: Load, job: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    module, results = benchmark("bench_sensitivity"), kept("bench_sensitivity")
    monkeypatch.setattr(module, "start", lambda network, samples=None: job)
    monkeypatch.setattr(module, "LAYERS", 4)
    monkeypatch.setattr(module, "IMAGES", 32)
    row = module.fresh(2, 3, 64)
    assert set(row) == set(results["fresh"][0])
    assert row["macs"] < job.table.macs
    assert set(module.grown()) == set(results["grown"])
    exact = [
        {**row, "seconds": share * 7 + judged * (0.1 + share * 0.02)}
        for row in results["fresh"]
        for share in [row["macs"] / results["fresh"][0]["macs"] * row["candidates"]]
        for judged in [len(module.split(Samples.of(torch.empty(row["images"])))[1])]
    ]
    found = module.linear(exact)
    assert found == pytest.approx({"rounding": 7, "backward": 0.1, "scoring": 0.02, "r2": 1, "worst": 0}, abs=1e-6)
    assert set(found) == set(results["linear"])


def test_a_run_is_summarised_and_its_folder_searched(benchmark: Load, given: tuple[str, str], tmp_path: Path) -> None:
    run, search, results = benchmark("bench_run"), benchmark("bench_search"), kept("bench_run")
    model, data = given
    more = ("--model", model, "--data", data, "--samples", "32", "--size-budget", "4kB", "--generations", "2")
    row = run.command(tmp_path / "run", *more)
    assert set(results["embedded"]) <= set(row)
    assert "| embedded default |" in run.table({"embedded": row})

    real = search.Real(tmp_path / "run")
    built = real.problem(additive=True, free=real.table.names[1:3])
    assert built.sizes.prod() > 1
    stored = kept("bench_search")
    assert set(search.additive("tiny", real.problem(additive=True), 1)) == set(stored["additive"][0])
    assert set(search.small("synthetic", at_fraction(problem(5), 0.3), 0)) == set(stored["small"][0])
    tight = at_fraction(problem(6), 0.3)
    front = search.search(tight, search.SearchSettings(generations=5))
    found = search.quadratic("synthetic", front, tight, 0, search.lower_bound(tight))
    assert set(found) == set(stored["quadratic"][0])
    assert set(search.random_search(problem(6, additive=True), 500)) == set(stored["random_search"])
    assert set(search.evolution_alone(problem(6, additive=True), 2000)) == set(stored["evolution_alone"])


def test_uniform_bits_are_measured(benchmark: Load, job: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = benchmark("bench_run")
    monkeypatch.setattr(module, "Run", lambda *_: job)
    rows = module.embedded_uniform(tmp_path)
    assert [set(row) for row in rows] == [set(row) for row in kept("bench_run")["embedded_uniform"]]
    assert rows[-1]["kl_reconstructed"] < rows[-1]["kl_nearest"]


def test_a_whole_network_is_timed(benchmark: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    module = benchmark("bench_profile")
    monkeypatch.setattr(module, "RUNS", 1)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 8), torch.nn.ReLU()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter
        paths = module.exported(model, tmp_path)
    assert min(module.whole_network_s(path) for path in paths.values()) > 0
    table = module.capture(model, Samples.noise((3, 224, 224)), "tiny").table
    lookup = module.profile_layers(table, list(paths), rounds=1)
    costs = module.device_costs(table, list(paths), module.lookup_device(lookup, "here"))
    assert costs.latency_s.shape == (1, 2)


def test_device_models_give_the_stored_figures(benchmark: Load) -> None:
    rows = benchmark("bench_hardware").rows()
    assert [{**asdict(row), "error": row.error} for row in rows] == kept("bench_hardware")["rows"]


def test_the_embedded_weights_are_what_was_trained(benchmark: Load) -> None:
    module = benchmark("train_demo")
    model = module.torchvision.models.mobilenet_v2(num_classes=len(demo.CLASSES))
    module.load(model, demo.weights_path())
    x, y = (torch.from_numpy(array) for array in demo.render("val", 64))
    assert module.accuracy(model, x, y) > 80


@pytest.mark.parametrize("network", ["resnet20", "mobilenetv2", "efficientnet_lite0"])
def test_real_networks_are_there_with_their_normalisation(network: str, benchmark: Load) -> None:
    module = benchmark("networks")
    if not (module.DATA / "models" / f"{module.SOURCES[network][1]}.safetensors").is_file():
        pytest.skip(f"no weights of {network} in {module.DATA}; set MPSEARCH_DATA to a folder that has them")
    loaded = module.start(network, 16).loaded.model
    known = json.loads((module.DATA / "models" / f"{module.SOURCES[network][1]}.json").read_text("utf-8"))
    assert loaded.normalization is not None
    assert list(loaded.normalization.mean) == pytest.approx(known["mean"])
    assert list(loaded.input_size or ()) == known["input_size"]
