"""Every command of docs/deploy.md runs as it stands, on a small network in the place of MobileNetV2."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from commandline import Command

PAGE = Path(__file__).resolve().parents[3] / "docs" / "deploy.md"


@pytest.mark.slow
def test_the_commands_of_the_page_run(
    tiny: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnxruntime", "ai_edge_litert"):
        pytest.importorskip(module, reason="the extras onnx and tflite are not installed")
    monkeypatch.chdir(tmp_path)
    small = f"--model {tiny / 'net.py'}:net --data {tiny / 'data'} --steps 2 --generations 5 --samples 48"
    lines = re.findall(r"^    ((?:mpsearch|make) .*?)(?: +#.*)?$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(lines) == 17
    pte = importlib.util.find_spec("executorch") is not None
    for line in lines:
        program, *arguments = shlex.split(
            re.sub(r"--model mobilenetv2 --size-budget 1\.[56]MB", f"{small} --size-budget 9kB", line)
        )
        if program == "mpsearch":
            done = command(*arguments)
            if ".pte" in line and not pte:
                assert done.code == 2
            else:
                assert done.code == 0, (line, done.err)
        elif shutil.which("cc") and shutil.which("make"):
            assert subprocess.run([program, *arguments], capture_output=True).returncode == 0, line
    for name in ("model.onnx", "packed.onnx", "model.tflite", "c/selftest", "model.pt2", "qonnx.onnx", "aimet.onnx"):
        assert (tmp_path / name).exists() or not shutil.which("cc")
    assert (tmp_path / "sized.onnx").stat().st_size <= 9000


def test_the_table_is_the_measured_one() -> None:
    stored = json.loads((PAGE.parents[1] / "benchmarks" / "results" / "bench_export.json").read_text("utf-8"))
    rows, page = stored["networks"], PAGE.read_text("utf-8")
    for run in stored["runs"]:
        figures = (
            f"{run['kl_exported']:.4f}, {run['kl_packed']:.4f} | {run['top1_exported']:.2f}, {run['top1_packed']:.2f}"
        )
        assert f"| {figures} | {run['ratio']:.2f} |" in page
    for name in {row["network"] for row in rows}:
        high, low = (next(r for r in rows if (r["network"], r["bits"]) == (name, bits)) for bits in ("W8A8", "W4A8"))
        more = 100 * (low["bytes"]["onnx --packed"] / low["bytes"]["packed file"] - 1)
        layers = f"{low['integer_layers']} of {low['layers']}"
        assert f"| {name} | {layers} | {high['ratio']:.2f} | {low['ratio']:.2f} | {more:+.1f} % |" in page


def test_the_other_runtimes_are_the_measured_ones() -> None:
    stored = json.loads((PAGE.parents[1] / "benchmarks" / "results" / "bench_runtimes.json").read_text("utf-8"))
    page = " ".join(PAGE.read_text("utf-8").split())
    for row in stored["networks"]:
        name = {"openvino": "OpenVINO", "executorch": "ExecuTorch, XNNPACK"}[row["runtime"]]
        assert f"| {row['network']} | {name} | {row['bits']} | {row['ratio']:.2f} |" in page
        assert f"| {100 * row['from_golden']:.1f} % |" in page
    for row in stored["runs"]:
        if row["runtime"] == "openvino":
            assert f"KL {row['metrics']['kl']:.4f} of the packed file's {row['packed']['kl']:.4f}" in page
        else:
            assert f"{round(row['same_decisions'] * row['samples'])} of {row['samples']} decisions" in page
