"""What users bring ends in the right result, that of the plain form of the same network, or in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import Command, refused

from hwmodel import BitConfig, Precision
from mpsearch.sources.models import load_model
from recon.graph.network import capture
from recon.likelihood.likelihood import CLASSIFIER
from recon.quantizers.quantized import plainly_rounded, quantized

CASES = Path(__file__).with_name("brought.py")
SIZE = (3, 16, 16)
QUICK = ("--steps", 4, "--population", 16, "--generations", 3, "--samples", 32)

ALIKE = {
    "weight_norm_old": "base", "weight_norm": "base", "prune_masks": "pruned_for_good", "only_super": "base",
    "tf_same": "tf_same_plainly", "no_grad_forward": "base", "inference_forward": "base", "frozen_backbone": "base",
    "grad_switched_off": "base", "autocast_inside": "base", "five_dims": "base", "inf_mask": "base", "prints": "base",
    "unused_head": "base", "data_parallel": "base", "compiled": "base", "exported": "base", "exported_program": "base",
    "wraps_parallel": "base", "wraps_compiled": "base",
    "half": "half_plainly", "inplace_input": "outofplace_input", "lazy": "lazy_run",
}  # fmt: skip

REFUSED = {
    "batch_one": ("runs on batches of 1 alone", "write x.shape[0]"),
    "numpy_inside": ("cannot be exported", "brought.py:"),
    "branch": ("cannot be exported", "brought.py:"),
    "two_outputs": ("classification expects one tensor", "--task"),
    "locked": ("cannot be copied", "_thread.lock"),
    "wraps_scripted": ("net is a scripted model",),
    "conditional": ("decides by values", "torch.where"),
    "scripted": ("scripted model", "give the nn.Module"),
    "meta": ("meta device", "weights"),
    "quantized": ("quantized already", "give the float model"),
}


def figures(name: str) -> tuple[torch.Tensor, float, int]:
    """The outputs of a case, what three bits by plain rounding lose, and how many weights are counted."""
    torch.manual_seed(0)
    x = torch.randn(24, *SIZE, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about the old ways
        loaded = load_model(f"{CASES}:{name}", None, demo=False, input_size=SIZE)
        network = capture(loaded.model, x[:3], name)
    config = BitConfig.uniform(network.table.names, Precision(3))
    with torch.no_grad():
        truth = network.outputs_of(x)
        rounded = quantized(network, plainly_rounded(network, (x,), config)).outputs_of(x)
    return truth[""], float(CLASSIFIER.divergence(truth, rounded).mean()), network.table.n_weights


@pytest.fixture(scope="module")
def plain() -> dict[str, tuple[torch.Tensor, float, int]]:
    return {name: figures(name) for name in set(ALIKE.values())}


@pytest.mark.parametrize("name", ALIKE)
def test_it_is_the_plain_network(name: str, plain: dict[str, tuple[torch.Tensor, float, int]]) -> None:
    truth, nats, weights = figures(name)
    expected, expected_nats, expected_weights = plain[ALIKE[name]]
    torch.testing.assert_close(truth, expected, rtol=1e-4, atol=1e-4)
    assert nats == pytest.approx(expected_nats, rel=1e-2)
    assert nats > 1e-5
    assert weights == expected_weights
    assert torch.is_grad_enabled()


def test_a_weight_that_is_a_plain_attribute_is_a_layer() -> None:
    truth, nats, weights = figures("held_tensor")
    expected, expected_nats, expected_weights = figures("base")
    torch.testing.assert_close(truth, expected, rtol=1e-4, atol=1e-4)
    assert weights == expected_weights + 64
    assert nats == pytest.approx(expected_nats, rel=1e-2)  # a matrix of zeros and ones loses nothing


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images: `all.npz`, with zeros for labels `zeros.npz`, grey `grey.npz`; and what the network takes."""
    folder = tmp_path_factory.mktemp("brought")
    x = np.random.default_rng(0).integers(0, 256, (96, 16, 16, 3), dtype=np.uint8)
    from brought import base

    with torch.inference_mode():
        z = base()((torch.from_numpy(x).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    np.savez(folder / "all.npz", x=x, y=z.argmax(1).numpy())
    np.savez(folder / "zeros.npz", x=x, y=np.zeros(96, np.int64))
    np.savez(folder / "grey.npz", x=x[..., 0])
    (folder / "brought.py").write_text(CASES.read_text("utf-8"))
    known = {"input_size": SIZE, "mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "brought.json").write_text(json.dumps(known))
    return folder


def made(data: Path, name: str, out: Path, *more: object, images: str = "all") -> tuple[object, ...]:
    return ("--model", f"{data}/brought.py:{name}", "--data", data / f"{images}.npz", "--out", out, *more)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(name: str, data: Path, tmp_path: Path, command: Command) -> None:
    refused(command("run", *made(data, name, tmp_path, "--size-budget", "3kB", *QUICK)), *REFUSED[name])


def test_a_grey_network_and_coloured_images(data: Path, tmp_path: Path, command: Command) -> None:
    (data / "gray.py").write_text(CASES.read_text("utf-8"))  # without a JSON
    line = ("--model", f"{data}/gray.py:gray", "--data", data / "all.npz", "--bits", 4, "--out", tmp_path)
    refused(command("reconstruct", *line), "does not run on", "channels")


def reconstructed(command: Command, *line: object) -> dict[str, Any]:
    done = command("reconstruct", *line, "--bits", "W3A8", "--steps", 4, "--samples", 32, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_in_place_and_out_of_place_end_alike(data: Path, tmp_path: Path, command: Command) -> None:
    ends = [
        reconstructed(command, *made(data, name, tmp_path / name))["metrics"]
        for name in ("inplace_input", "outofplace_input")
    ]
    assert ends[0] == ends[1]
    assert ends[0]["float"]["top1"] > 20


def test_one_logit_is_a_decision(data: Path, tmp_path: Path, command: Command) -> None:
    found = reconstructed(command, *made(data, "one_logit", tmp_path, images="zeros"))
    assert found["metrics"]["plain"]["kl"] > found["metrics"]["finished"]["kl"] > 0
    assert [figure["name"] for figure in found["judged_by"]] == ["top1", "kl"]


def test_edges_that_make_a_budget_impossible_are_named(data: Path, tmp_path: Path, command: Command) -> None:
    result = command("run", *made(data, "base", tmp_path, "--size-budget", "1100B", *QUICK))
    refused(result, "1,100 bytes", "or for stem.0 and fc with --edges free")


def test_a_network_without_gradients_runs_with_a_note(data: Path, tmp_path: Path, command: Command) -> None:
    done = command("run", *made(data, "signs", tmp_path, "--size-budget", "1300B", *QUICK, "--json"))
    assert done.code == 0, done.err
    assert "no gradient shows what 3 of 4 layers do (first: stem.0)" in done.err
    metrics = json.loads(done.out)["metrics"]
    assert metrics["finished"]["kl"] < metrics["plain"]["kl"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*ALIKE, "mc_dropout", "signs", "base"])
def test_it_runs_to_the_end(name: str, data: Path, tmp_path: Path, command: Command) -> None:
    result = command("run", *made(data, name, tmp_path, "--size-budget", "1400B", *QUICK, "--json"))
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (tmp_path / "model-budget.safetensors").stat().st_size == found["size_bytes"] <= 1400
    assert found["metrics"]["finished"]["kl"] <= found["metrics"]["plain"]["kl"] or name == "mc_dropout"
    assert ("random in eval mode" in result.err) == (name == "mc_dropout")


FLATTEN = """
from torch import nn

def net():
    features = (nn.Conv2d(3, 256, 5, 5), nn.ReLU(), nn.Flatten(), nn.Linear(9216, 64), nn.ReLU(), nn.Linear(64, 10))
    return nn.Sequential(*features).eval()
"""
PEAK = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); " + (
    "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
)


@pytest.mark.slow
def test_a_classifier_of_thousands_of_inputs_takes_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FLATTEN)
    (tmp_path / "net.json").write_text('{"input_size": [3, 32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]}')
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 256, (96, 32, 32, 3)).astype(np.uint8))
    line = ("run", "--model", f"{tmp_path}/net.py:net", "--data", tmp_path / "x.npz", "--size-budget", "300kB", *QUICK)
    command = [sys.executable, "-m", "mpsearch", *map(str, line), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", PEAK, *command], capture_output=True, text=True, check=True)
    assert int(done.stdout.rsplit("peak", 1)[1]) < 2.5e9  # 4.2 GB where the covariance is one matrix
