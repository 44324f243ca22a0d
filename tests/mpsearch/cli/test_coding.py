"""`--coding entropy`: from candidates that are rates to a file of the size that was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import Command, refused
from torch import nn

import mpsearch
from hwmodel import BitConfig, InputError, Precision
from mpsearch.files.folder import RunFolder
from mpsearch.request.assignment import parse_precision
from mpsearch.request.options import RunOptions
from mpsearch.run.artifacts import read_front


@pytest.fixture
def asked(tiny: Path) -> tuple[object, ...]:
    about = "--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data", "--steps", 10
    return (*about, "--generations", 20, "--coding", "entropy", "--edges", "free")


def test_a_run_ends_within_its_budget(asked: tuple[object, ...], tmp_path: Path, command: Command) -> None:
    rates = "1.5,2.5,3.5,5"
    result = command("run", *asked, "--rates", rates, "--size-budget", "2300B", "--out", tmp_path, "--json")
    assert result.code == 0, result.err
    done = json.loads(result.out)
    path = tmp_path / "model-budget.safetensors"
    assert path.stat().st_size == done["size_bytes"] <= done["predicted_bytes"] <= 2300
    assert done["size_bytes"] > 0.99 * done["predicted_bytes"]
    assert done["coding"] == "entropy"
    record = json.loads((tmp_path / "chosen" / "budget.json").read_text())
    config = BitConfig.from_json(record["config"])
    assert {precision.rate for precision in config.precisions} <= {1.5, 2.5, 3.5, 5.0}
    assert len(set(config.precisions)) > 1
    front = read_front(RunFolder(tmp_path))
    assert front.objectives[front.best(), 1] == done["predicted_bytes"]

    before = path.read_bytes()
    path.unlink()
    again = command("finalize", tmp_path, "--json")
    assert again.code == 0, again.err
    assert path.read_bytes() == before
    assert json.loads(again.out)["budget"]["metrics"] == done["metrics"]

    why = command("why", tmp_path, "budget", "--json")
    assert why.code == 0, why.err
    explained = json.loads(why.out)
    assert explained["size_bytes"] == done["predicted_bytes"]
    assert {layer["precision"][0] for layer in explained["layers"]} == {"R"}
    exported = command("export", tmp_path)
    assert json.loads(exported.out)["budget"] == record["config"]
    page = command("front", tmp_path, "--plot")
    assert page.code == 0, page.err
    fixed = [part for part in asked if part not in ("--coding", "entropy")]
    assert command("sensitivity", *fixed, "--size-budget", "2300B", "--out", tmp_path / "fixed").code == 0
    assert command("search", tmp_path / "fixed").code == 0
    both = command("compare", tmp_path, tmp_path / "fixed", "--plot", tmp_path / "both.png")
    assert both.code == 0, both.err
    assert (tmp_path / "both.png").is_file()


def test_other_runtimes_get_the_decoded_weights(tiny: Path, tmp_path: Path, command: Command) -> None:
    runtime = pytest.importorskip("onnxruntime")
    given = "--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data", "--steps", 0
    assert command("reconstruct", *given, "--bits", "R3", "--out", tmp_path / "run").code == 0
    made = command("export", tmp_path / "run", "--format", "onnx", "--out", tmp_path / "net.onnx")
    assert made.code == 0, made.err
    space: dict[str, Callable[[], nn.Module]] = {}
    exec((tiny / "net.py").read_text(), space)
    ours = mpsearch.load_packed(tmp_path / "run" / "model-R3A32.safetensors", model=space["net"]())
    x = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.inference_mode():
        expected = ours(x)
    assert torch.allclose(torch.from_numpy(theirs), expected, atol=1e-4 * float(expected.abs().max()))


def test_given_rates(tiny: Path, tmp_path: Path, command: Command) -> None:
    given = "--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data", "--steps", 10
    result = command("reconstruct", *given, "--bits", "R2.5A8", "--out", tmp_path, "--json")
    assert result.code == 0, result.err
    done = json.loads(result.out)
    precisions = BitConfig.from_json(done["config"]).precisions
    assert set(precisions[1:-1]) == {Precision(8, 8, 2.5)}
    assert precisions[0] == precisions[-1] == Precision(8, 8, 8.0)
    path = tmp_path / "model-R2.5A8.safetensors"
    assert path.stat().st_size == done["size_bytes"]
    assert done["metrics"]["finished"]["kl"] < done["metrics"]["plain"]["kl"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--rates", "2,3"), ("--rates", "add --coding entropy")),
        (("--coding", "huffman"), ("--coding must be one of fixed, entropy", "'huffman'")),
        (("--coding", "entropy", "--wbits", "2,4"), ("--wbits", "give --rates")),
        (("--coding", "entropy", "--rates", "0.2,3"), ("rates look like 1.5,2,2.5,3", "'0.2,3'")),
        (("--coding", "entropy", "--rates", "2.3"), ("in eighths", "'2.3'")),
        (("--coding", "entropy", "--rates", "nan"), ("in eighths", "'nan'")),
        (("--fix", "0=2.5"), ("--fix 0=2.5", "--coding entropy")),
        (("--coding", "entropy", "--fix", "0=9"), ("weight bits are 2 to 8", "got 9")),
        (("--coding", "entropy", "--size-budget", "1kB"), ("the size budget is", "or allow fewer bits with --rates")),
    ],
)
def test_what_does_not_fit(
    options: tuple[str, ...], parts: tuple[str, ...], tiny: Path, tmp_path: Path, command: Command
) -> None:
    given = "--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data", "--out", tmp_path / "run"
    budget = () if "--size-budget" in options else ("--size-budget", "4kB")
    refused(command("run", *given, *budget, *options), *parts)


def test_precisions_with_a_rate_are_written_as_they_are_read() -> None:
    for text in ("R2.5A32", "R0.5A8", "R8A4", "R2.125A32"):
        assert str(Precision.parse(text)) == text
    assert parse_precision("R2.5") == Precision(8, rate=2.5)
    assert Precision.parse("R2.5A8").arithmetic == Precision(8, 8)
    for text in ("R0A8", "R9A8", "R2.3A8", "R2.5", "RA8", "R2.A8"):
        with pytest.raises(InputError):
            Precision.parse(text)
    with pytest.raises(InputError, match="a rate is"):
        Precision(4, rate=2.5)


def test_a_layer_may_be_given_rates(tiny: Path) -> None:
    options = RunOptions(coding="entropy", size_budget_bytes=4000, rates=(2.0, 3.0), abits=(8, 4))
    assert options.precisions == tuple(Precision(8, a, rate) for a in (4, 8) for rate in (2.0, 3.0))
    assert options.edge == Precision(8, 8, 8.0)
    assert RunOptions(size_budget_bytes=4000).edge == Precision(8)


def test_from_python(tiny: Path, tmp_path: Path) -> None:
    space: dict[str, Callable[[], nn.Module]] = {}
    exec((tiny / "net.py").read_text(), space)
    model = space["net"]()
    x = torch.from_numpy(np.load(tiny / "data" / "calib.npz")["x"]).permute(0, 3, 1, 2) / 64 - 2
    front = mpsearch.search(model, [x], "4kB", coding="entropy", generations=10, steps=5, edges="free")
    done = front.finish()
    path = done.save(tmp_path / "m.safetensors")
    assert path.stat().st_size == done.size_bytes <= 4000
    loaded = mpsearch.load_packed(path, model=model)
    with torch.inference_mode():
        assert torch.equal(loaded(x[:4]), done.model(x[:4]))
