"""Finished models in other runtimes: integer kernels, speed beside float, size, and what accuracy is left.

    python benchmarks/bench_export.py [WORK | NETWORK…]

Networks at plainly rounded bits say which exporters take them, and how fast onnxruntime runs them beside float: weights
decide neither. Runs of the embedded default, with and without a target, and with ImageNet in ../shared/data (or
MPSEARCH_DATA) of its MobileNetV2, say what accuracy exports keep; a run that is there already in the folder WORK is
taken. Where networks are named, these alone are measured anew. Writes benchmarks/results/bench_export.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torchvision
from machine import machine
from torch import nn

from hwmodel import BitConfig, InputError, Precision
from mpsearch.deploy.speed import timed
from mpsearch.export.c.write import write_c
from mpsearch.export.onnx.qonnx import write_qonnx
from mpsearch.export.onnx.session import FLOAT_LAYERS, INTEGER_LAYERS, Session, kernels
from mpsearch.export.onnx.write import write_onnx
from mpsearch.export.packed import save_packed
from mpsearch.export.plan.build import build_plan, float_plan, simulated_plan
from mpsearch.export.tflite.write import write_tflite
from mpsearch.export.torch.module import exported_program, program_bytes
from mpsearch.sources.factory import call_factory
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.quantizers.quantized import QuantizedLayers, plainly_rounded

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("MPSEARCH_DATA") or ROOT.parent / "shared" / "data")
FLOAT = (np.dtype(np.float32),)
SAMPLES, SECONDS = 8, 8.0
RUNS: dict[str, tuple[str, ...]] = {
    "embedded, no target": ("--abits", "8"),
    "embedded, onnxruntime": ("--abits", "8", "--target", "onnxruntime"),
    "ImageNet MobileNetV2, onnxruntime": ("--abits", "8", "--target", "onnxruntime", "--samples", "256"),
}
FORMATS = (("onnx", "model.onnx"), ("onnx --packed", "packed.onnx"), ("tflite", "model.tflite"))


def torchvision_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    for part in model.modules():  # batch norms as trained ones are: not all alike
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.1, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return model


def of_file(name: str) -> nn.Module:
    return call_factory(f"{DATA / 'models' / name}.py:factory").eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MobileNetV2": (lambda: torchvision_model("mobilenet_v2"), (3, 224, 224)),
    "ResNet-18": (lambda: torchvision_model("resnet18"), (3, 224, 224)),
    "MobileNetV3-small": (lambda: torchvision_model("mobilenet_v3_small"), (3, 224, 224)),
    "RegNetY-400MF": (lambda: torchvision_model("regnet_y_400mf"), (3, 224, 224)),
    "EfficientNet-Lite0": (lambda: of_file("efficientnet_lite0_imagenet"), (3, 224, 224)),
    "YOLOX-nano": (lambda: of_file("yolox_nano_coco"), (3, 352, 352)),
}


def written(make: Callable[[], bytes]) -> int | str:
    """Bytes that an exporter writes, or why it does not."""
    try:
        return len(make())
    except InputError as error:
        return str(error)


def exporters(network: Network, layers: QuantizedLayers, leaves: tuple[torch.Tensor, ...]) -> dict[str, int | str]:
    """Bytes of every format of one network."""
    whole = build_plan(network, layers, leaves, real_outputs=False, narrow=True, channel_steps=False)
    plan = build_plan(network, layers, leaves)
    sample = [leaf[:1].numpy() for leaf in leaves]
    with TemporaryDirectory() as folder:
        packed = save_packed(Path(folder) / "packed.safetensors", network, "model", layers)
    return {
        "packed file": packed,
        "onnx": written(lambda: write_onnx(plan, {}, FLOAT).SerializeToString()),
        "onnx --packed": written(lambda: write_onnx(plan, {}, FLOAT, packed=True).SerializeToString()),
        "qonnx": written(lambda: write_qonnx(simulated_plan(network, layers), {}, FLOAT).SerializeToString()),
        "tflite": written(lambda: write_tflite(whole, {})),
        "c": written(lambda: "".join(write_c(whole, sample, {}).values()).encode()),
        "pt2e": written(lambda: program_bytes(exported_program(whole, leaves), {})),
    }


def network_rows(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Networks at W8A8 and W4A8 (ends at 8 bits): exporters, integer layers, speed."""
    for name in names:
        make, shape = NETWORKS[name]
        samples = Samples.noise(shape, count=SAMPLES)
        network = capture(make(), samples, name)
        leaves = network.leaves(samples)
        real = write_onnx(float_plan(network), {}, FLOAT).SerializeToString()
        x = leaves[0][:1].numpy()
        for bits in (8, 4):
            precisions = [Precision(bits, 8)] * len(network.table)
            precisions[0] = precisions[-1] = Precision(8, 8)
            config = BitConfig(network.table.names, tuple(precisions))
            layers = plainly_rounded(network, leaves, config, (8,))
            data = write_onnx(build_plan(network, layers, leaves), {}, FLOAT).SerializeToString()
            found = kernels(data, name)
            integers = sum(found[kind] for kind in INTEGER_LAYERS)
            ours, theirs = Session(data, 1, name), Session(real, 1, name)
            runs = {key: partial(one.run, [x]) for key, one in (("integer", ours), ("float", theirs))}
            speed = timed(runs, SECONDS)
            row = {
                "network": name,
                "bits": f"W{bits}A8",
                "integer_layers": integers,
                "layers": integers + sum(found[kind] for kind in FLOAT_LAYERS),
                "integer_ms": round(speed["integer"].median_ms, 3),
                "float_ms": round(speed["float"].median_ms, 3),
                "ratio": round(speed["float"].median_ms / speed["integer"].median_ms, 2),
                "bytes": exporters(network, layers, leaves) if bits == 4 else {},
            }
            yield row


def mpsearch(*arguments: object) -> str:
    done = subprocess.run([sys.executable, "-m", "mpsearch", *map(str, arguments)], check=True, stdout=subprocess.PIPE)
    return done.stdout.decode()


def run_rows(work: Path) -> Iterator[dict[str, Any]]:
    """What checks find of the exports of finished runs at 1.5 MB."""
    for name, more in RUNS.items():
        folder = work / name.replace(", ", "-").replace(" ", "-")
        model: tuple[object, ...] = ("--model", "mobilenetv2")
        if name.startswith("ImageNet"):
            if not (DATA / "imagenet").is_dir():
                continue
            weights = DATA / "models" / "mobilenet_v2_imagenet.safetensors"
            model = ("--model", "mobilenet_v2", "--weights", weights, "--data", DATA / "imagenet")
        if not (folder / "chosen" / "budget.json").is_file():
            mpsearch("run", *model, "--size-budget", "1.5MB", *more, "--threads", 1, "--out", folder)
        for form, file in FORMATS[:2] if name.startswith("ImageNet") else FORMATS:
            out = folder / file
            words = form.split()
            mpsearch("export", folder, "--format", words[0], *words[1:], "--out", out, "--force")
            found = json.loads(mpsearch("check", out, "--run", folder, "--json", "--seconds", SECONDS))
            one, metrics = found["speed"]["1"], found["metrics"]
            row = {
                "run": name,
                "format": form,
                "runtime": found["runtime"],
                "bytes": found["size_bytes"],
                "packed_bytes": found["packed_bytes"],
                "samples": found["samples"],
                "top1_float": metrics["float"]["top1"],
                "top1_packed": metrics["packed"]["top1"],
                "top1_exported": metrics["exported"]["top1"],
                "kl_packed": metrics["packed"]["kl"],
                "kl_exported": metrics["exported"]["kl"],
                "kl_ratio": round(metrics["exported"]["kl"] / metrics["packed"]["kl"], 3),
                "same_as_golden": found["agreement"]["identical"],
                "integer_layers": found["integer_layers"],
                "layers": found["layers"],
                "ms": round(one["exported"]["median_ms"], 3),
                **(
                    {"ratio": round(one["float"]["median_ms"] / one["exported"]["median_ms"], 2)}
                    if "float" in one
                    else {}
                ),
            }
            yield row


def main() -> None:
    path = ROOT / "benchmarks" / "results" / "bench_export.json"
    packages = ("onnx", "onnxruntime", "ai-edge-litert", "torch")
    named = [name for name in sys.argv[1:] if name in NETWORKS]
    result: dict[str, Any] = json.loads(path.read_text()) if named else {}
    result |= {"machine": machine(), "versions": {name: version(name) for name in packages}}
    with TemporaryDirectory() as folder:
        work = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder)
        tables = {"networks": network_rows(named or tuple(NETWORKS))} | ({} if named else {"runs": run_rows(work)})
        for key, found in tables.items():
            result[key] = [row for row in result.get(key, []) if row["network"] not in named]
            for row in found:  # what is measured is kept, whatever becomes of the rest
                print(row, flush=True)
                result[key].append(row)
                path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
