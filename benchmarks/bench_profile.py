"""The measured table against reality: sums of layers beside whole networks, in the same runtime on this machine.

    python benchmarks/bench_profile.py

Needs the extra `onnx`. Writes benchmarks/results/bench_profile.json and the table of docs/hardware.md. Networks carry
random weights: time does not depend on them. The layer table and the whole network are measured in turn, REPEATS times,
and medians are compared.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from machine import machine
from pages import put

from hwmodel.device import lookup_device
from hwmodel.latency import device_costs
from hwmodel.precision import Precision
from mpsearch.hardware.profile import FLOAT, profile_layers
from recon.graph.network import capture
from recon.graph.samples import Samples

NETWORKS = ("mobilenet_v2", "resnet18", "regnet_x_400mf")
INTEGER = Precision(8, 8)
REPEATS, RUNS = 9, 30
PAGE, RESULT = ROOT / "docs" / "hardware.md", ROOT / "benchmarks" / "results" / "bench_profile.json"


class RandomImages:
    """Four calibration images of noise, in the form that onnxruntime's quantizer asks for."""

    def __init__(self, name: str) -> None:
        rng = np.random.default_rng(0)
        self.images = [{name: rng.normal(0, 1, (1, 3, 224, 224)).astype(np.float32)} for _ in range(4)]

    def get_next(self) -> dict[str, Any] | None:
        return self.images.pop() if self.images else None


def exported(model: torch.nn.Module, folder: Path) -> dict[Precision, Path]:
    """The network as ONNX, in float and in 8-bit QuantizeLinear/DequantizeLinear form."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    paths = {precision: folder / f"{precision}.onnx" for precision in (FLOAT, INTEGER)}
    torch.onnx.export(model, (torch.zeros(1, 3, 224, 224),), str(paths[FLOAT]), dynamo=False, opset_version=17)
    quant_pre_process(str(paths[FLOAT]), str(folder / "ready.onnx"))
    quantize_static(
        str(folder / "ready.onnx"), str(paths[INTEGER]), RandomImages(_input(paths[FLOAT])),
        quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return paths


def _input(path: Path) -> str:
    return str(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()[0].name)


def whole_network_s(path: Path) -> float:
    """Median seconds of one image through the network, one thread: of processor time, so that being interrupted by what
    else runs on the machine does not count (a median over short layers does not see it either)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    image = {session.get_inputs()[0].name: np.random.default_rng(0).normal(0, 1, (1, 3, 224, 224)).astype(np.float32)}
    times = []
    for _ in range(RUNS + 3):
        start = time.thread_time()
        session.run(None, image)
        times.append(time.thread_time() - start)
    return float(np.median(times[3:]))


def compare(name: str) -> list[dict[str, Any]]:
    """Predicted and measured milliseconds of one network at both precisions."""
    model = torchvision.models.get_model(name, weights=None).eval()
    table = capture(model, Samples.noise((3, 224, 224)), name).table
    predicted: dict[Precision, list[float]] = {FLOAT: [], INTEGER: []}
    measured: dict[Precision, list[float]] = {FLOAT: [], INTEGER: []}
    with TemporaryDirectory() as folder:
        paths = exported(model, Path(folder))
        for _ in range(REPEATS):
            for precision, path in paths.items():
                lookup = profile_layers(table, [precision], rounds=RUNS)
                costs = device_costs(table, [precision], lookup_device(lookup, "here"))
                predicted[precision].append(float(costs.latency_s.sum()) * 1e3)
                measured[precision].append(whole_network_s(path) * 1e3)
    return [
        {
            "network": name,
            "precision": str(precision),
            "layers": len(table),
            "predicted_ms": float(np.median(predicted[precision])),
            "measured_ms": float(np.median(measured[precision])),
            "error": float(np.median(predicted[precision]) / np.median(measured[precision]) - 1),
            "predicted_all_ms": predicted[precision],
            "measured_all_ms": measured[precision],
            "source": lookup.source,
        }
        for precision in predicted
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The page's table."""
    lines = ["| network | precision | sum of layers | whole network | error |", "|---|---|---|---|---|"]
    for row in rows:
        figures = f"{row['predicted_ms']:.2f} ms | {row['measured_ms']:.2f} ms | {100 * row['error']:+.1f} %"
        lines.append(f"| {row['network']} | {row['precision']} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    rows = [row for name in NETWORKS for row in compare(name)]
    print(table(rows))
    result = {
        "what": "sum of the layers' measured latencies beside the whole network's, one image, one thread",
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "onnxruntime": onnxruntime.__version__,
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    put(PAGE, "bench_profile", table(rows))


if __name__ == "__main__":
    main()
