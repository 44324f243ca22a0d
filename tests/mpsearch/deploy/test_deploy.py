"""`mpsearch export` of models, `check` and `--target`: from a run folder to runtimes, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from commandline import Command, refused
from rich.console import Console

from hwmodel.target import list_targets, load_target
from mpsearch.cli.main import main
from mpsearch.show.targets import targets_rows

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny network finished at W4A8 for onnxruntime, and at W4 with float activations."""
    folder = tmp_path_factory.mktemp("deploy") / "run"
    model = ["--model", f"{tiny / 'net.py'}:net", "--data", str(tiny / "data"), "--steps", "2", "--out", str(folder)]
    before = sys.argv
    for more in (["--bits", "W4A8", "--target", "onnxruntime"], ["--bits", "W4"]):
        sys.argv = ["mpsearch", "reconstruct", *model, *more]
        try:
            main()
        except SystemExit as stop:
            assert not stop.code  # noqa: PT017
        finally:
            sys.argv = before
    return folder


def export(command: Command, run: Path, form: str, out: Path, *more: object) -> None:
    result = command("export", run, "--config", "W4A8", "--format", form, "--out", out, *more)
    assert result.code == 0, result.err
    assert str(out) in result.out


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_onnx_keeps_what_the_packed_file_computes(run: Path, tmp_path: Path, command: Command, packed: bool) -> None:
    out = tmp_path / "model.onnx"
    export(command, run, "onnx", out, *(["--packed"] if packed else []))
    found = json.loads(command("check", out, "--run", run, "--seconds", 0, "--json").out)
    assert found["integer_layers"] == found["layers"] == 6
    assert found["size_bytes"] == out.stat().st_size
    assert abs(found["metrics"]["exported"]["top1"] - found["metrics"]["packed"]["top1"]) <= 2
    assert found["metrics"]["exported"]["kl"] <= 1.3 * found["metrics"]["packed"]["kl"] + 1e-3
    assert found["agreement"]["decisions"] > 0.9
    assert {"1", "all"} == set(found["speed"])


def test_weight_only_files_are_exact(run: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "model.onnx"
    result = command("export", run, "--config", "W4A32", "--format", "onnx", "--out", out)
    assert "activations are float" in result.err
    found = json.loads(command("check", out, "--run", run, "--seconds", 0, "--json").out)
    assert found["metrics"]["exported"]["top1"] == found["metrics"]["packed"]["top1"]
    assert abs(found["metrics"]["exported"]["kl"] - found["metrics"]["packed"]["kl"]) < 1e-4
    assert found["agreement"]["identical"] > 0.99


@pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="the extra tflite is not installed")
def test_tflite_is_checked_in_litert(run: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "model.tflite"
    export(command, run, "tflite", out)
    found = json.loads(command("check", out, "--run", run, "--seconds", 0, "--json").out)
    assert found["kernels"]["CONV_2D"] == 5
    assert found["agreement"]["decisions"] > 0.9
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(out.read_bytes()[:200])
    refused(command("check", damaged, "--run", run), "damaged")


@pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="no C compiler and make")
def test_c_is_golden(run: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "c"
    export(command, run, "c", out)
    found = json.loads(command("check", out, "--run", run, "--seconds", 0, "--json").out)
    assert found["agreement"]["identical"] == found["agreement"]["decisions"] == 1
    assert found["kernels"]["arena_bytes"] > 0
    (out / "golden.h").write_text((out / "golden.h").read_text().replace(",1", ",2"))
    refused(command("check", out, "--run", run), "self-test")
    (out / "Makefile").write_text("check:\n\ttouch ran\n")
    refused(command("check", out, "--run", run), "Makefile is not what this version of mpsearch writes")
    assert not (out / "ran").exists()


@pytest.mark.parametrize("form", ["qonnx", "pt2e"])
def test_other_formats_are_written(run: Path, tmp_path: Path, command: Command, form: str) -> None:
    export(command, run, form, tmp_path / "model")
    assert (tmp_path / "model").stat().st_size > 1000


def test_the_target_makes_8_bit_weights_exact(run: Path, tmp_path: Path, command: Command) -> None:
    result = command("export", run, "--config", "W4A8", "--format", "onnx", "--out", tmp_path / "model.onnx")
    assert "6 of 6 layers in integers" in result.err
    assert "rounded once more to int8" not in result.err


def test_files_that_are_there_stay(run: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    arguments = ("export", run, "--config", "W4A8", "--format", "onnx")
    refused(command(*arguments, "--out", out), "is there already", "--force")
    assert out.read_text() == "mine"
    refused(command(*arguments, "--out", tmp_path), "must name a file")
    refused(command(*arguments, "--out", tmp_path / "no" / "model.onnx"), "is no folder")
    refused(command(*arguments), "--format onnx needs --out")
    assert command(*arguments, "--out", out, "--force").code == 0
    assert out.stat().st_size > 1000
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_a_place_without_permission_is_refused(
    run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access  # tests may run as root, who may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode, **more: path != tmp_path and real(path, mode, **more))
    result = command("export", run, "--config", "W4A8", "--format", "onnx", "--out", tmp_path / "model.onnx")
    refused(result, "no permission")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(
    run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = command("export", run, "--config", "W4A8", "--format", "onnx", "--out", tmp_path / "model.onnx")
    refused(result, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_choices_of_other_formats_are_refused(run: Path, tmp_path: Path, command: Command) -> None:
    arguments = ("export", run, "--config", "W4A8", "--out", tmp_path / "model")
    refused(command(*arguments, "--format", "c", "--packed"), "--packed is a choice of --format onnx")
    refused(command(*arguments, "--format", "onnx", "--int4"), "--int4 is a choice of --format tflite")
    refused(command(*arguments, "--format", "onxx"), "--format must be")


@pytest.mark.parametrize("form", ["c", "tflite"])
def test_float_activations_need_another_format(run: Path, tmp_path: Path, command: Command, form: str) -> None:
    if form == "tflite":
        pytest.importorskip("ai_edge_litert", reason="the extra tflite is not installed")
    result = command("export", run, "--config", "W4A32", "--format", form, "--out", tmp_path / "model")
    refused(result, f"--format {form} needs integers")
    assert os.listdir(tmp_path) == []


def test_a_missing_library_is_named(
    run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else found(name, *rest))
    result = command("export", run, "--config", "W4A8", "--format", "onnx", "--out", tmp_path / "model.onnx")
    refused(result, "--format onnx needs onnx: pip install 'mpsearch[onnx]'")


def test_unfinished_runs_are_refused(tmp_path: Path, run: Path, command: Command) -> None:
    arguments = ("--format", "onnx", "--out", tmp_path / "model.onnx")
    refused(command("export", tmp_path, *arguments), "is no run folder")
    refused(command("export", run, "--config", "W2A8", *arguments), "--config must be one of W4A32, W4A8")
    other = tmp_path / "other"
    shutil.copytree(run, other)
    shutil.rmtree(other / "chosen")
    refused(command("export", other, *arguments), "nothing is finished")


def test_check_refuses_what_it_cannot_check(run: Path, tiny: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "model.onnx"
    refused(command("check", out, "--run", run), "is missing")
    export(command, run, "onnx", out)
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(out.read_bytes()[: out.stat().st_size // 2])
    refused(command("check", damaged, "--run", run), "damaged or no ONNX file")
    refused(command("check", tiny / "net.pt", "--run", run), "check reads")
    refused(command("check", tmp_path, "--run", run), "is no folder of `mpsearch export --format c`")
    moved = tmp_path / "elsewhere"
    shutil.copytree(run, moved)
    settings = moved / "reconstruct.toml"
    settings.write_text(settings.read_text().replace("/data", "/nowhere"))
    refused(command("check", out, "--run", moved), "nowhere")


@pytest.mark.slow
def test_check_refuses_another_models_file(run: Path, tiny: Path, tmp_path: Path, command: Command) -> None:
    out, other = tmp_path / "model.onnx", tmp_path / "other"
    export(command, run, "onnx", out)
    model = ("--model", f"{tiny / 'net.py'}:wide", "--data", tiny / "data", "--steps", 1, "--input", "3x12x12")
    done = command("reconstruct", *model, "--bits", "W4A8", "--out", other)
    assert done.code == 0, done.err
    refused(command("check", out, "--run", other), "with other weights than those of the run")


def test_an_old_runtime_is_refused(
    run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    out = tmp_path / "model.onnx"
    export(command, run, "onnx", out)
    monkeypatch.setattr(onnxruntime, "__version__", "1.19.2")
    refused(command("check", out, "--run", run), "onnxruntime 1.19.2 is too old", "1.24.4")
    monkeypatch.setattr(onnxruntime, "__version__", "1.99.0")
    newer = command("check", out, "--run", run, "--seconds", 0)
    assert newer.code == 0
    assert "newer than the last one tested" in newer.err


def test_bits_that_a_target_lacks_are_refused(tiny: Path, tmp_path: Path, command: Command) -> None:
    model = ("--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data", "--out", tmp_path / "run")
    refused(command("reconstruct", *model, "--bits", "W4A4", "--target", "tflite"), "target tflite does not run W4A4")
    refused(
        command("run", *model, "--size-budget", "1MB", "--abits", "4", "--target", "tflite"),
        "target tflite does not run W2A4",
    )
    refused(command("run", *model, "--size-budget", "1MB", "--target", "tflit"), "did you mean tflite")


def test_a_narrow_window_cuts_no_name_of_a_target() -> None:
    known = [load_target(name) for name in list_targets()]
    console = Console(width=40, force_terminal=True, file=StringIO())
    console.print(targets_rows(known))
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    assert all(target.name in shown for target in known)


def test_targets_are_listed(command: Command) -> None:
    listed = command("targets")
    assert listed.code == 0
    for name in ("onnxruntime", "tflite-int4", "executorch"):
        assert name in listed.out
    assert "zero-point in the middle at 4, 8 bits" in command("targets", "tflite-int4").out


def test_the_speed_of_two_runs_is_taken_in_turn() -> None:
    from mpsearch.deploy.speed import timed

    order: list[str] = []
    found = timed({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0)
    assert order[-4:] == ["a", "b", "a", "b"]
    assert found["a"].runs == found["b"].runs >= 10
    assert all(np.isfinite([found[key].median_ms, found[key].lower_ms, found[key].upper_ms]).all() for key in found)
