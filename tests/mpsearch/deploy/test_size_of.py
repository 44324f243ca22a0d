"""`--size-of`: the size of an exported file is the budget, in search, summary, front and export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import Command, refused

pytest.importorskip("onnx", reason="the extra onnx is not installed")

QUICK = ("--samples", 16, "--steps", 1, "--population", 8, "--generations", 2)


def test_the_exported_file_has_the_size_that_was_searched(tiny: Path, tmp_path: Path, command: Command) -> None:
    run, out = tmp_path / "run", tmp_path / "model.onnx"
    model = ("--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data", "--abits", 8, "--target", "onnxruntime")
    arguments = ("run", *model, *QUICK, "--size-of", "onnx-packed", "--size-budget", "9kB", "--out", run)
    done = command(*arguments)
    assert done.code == 0, done.err
    assert "packed ONNX file" in done.out
    assert "of 9,000" in done.out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["size_of"] == "onnx-packed"
    assert summary["file_bytes"] == summary["predicted_bytes"] <= 9000
    front = json.loads((run / "front.json").read_text())
    sizes = [values[front["objectives"].index("size_bytes")] for values, _ in front["points"]]
    assert summary["file_bytes"] in sizes
    exported = command("export", run, "--format", "onnx", "--packed", "--out", out)
    assert exported.code == 0, exported.err
    assert out.stat().st_size == summary["file_bytes"]
    assert command("search", run).code == 0  # the folder says what the sizes are of
    assert json.loads((run / "costs.json").read_text())["size_of"] == "onnx-packed"


def test_sizes_that_mean_nothing_are_refused(tiny: Path, tmp_path: Path, command: Command) -> None:
    model = ("--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data", "--out", tmp_path / "run")
    arguments = ("run", *model, "--size-budget", "9kB")
    refused(command(*arguments, "--size-of", "onxx"), "--size-of must be one of packed, onnx")
    refused(command(*arguments, "--size-of", "c"), "--size-of c needs quantized activations")
    refused(command(*arguments, "--size-of", "onnx", "--coding", "entropy"), "leave out --coding entropy")
    refused(command(*arguments, "--size-of", "tflite-int4", "--abits", 8), "add --target tflite-int4")
    refused(command("run", *model, "--abits", 8, "--size-of", "onnx", "--size-budget", "1kB"), "the smallest file")
