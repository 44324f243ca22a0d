"""Exports in runtimes that are not installed with mpsearch: OpenVINO, ExecuTorch through XNNPACK, and qonnx.

    python -m venv rt && rt/bin/pip install -e '.[onnx]' openvino executorch qonnx      # an environment of their own
    rt/bin/python benchmarks/bench_runtimes.py [NETWORK | RUN…]

Networks at plainly rounded bits say how fast each runtime runs them beside float, and whether it computes what the
golden plan does; finished models of run folders say what accuracy OpenVINO and qonnx keep. What is not installed is
left out, and so is what is not named, where something is. Writes benchmarks/results/bench_runtimes.json, where rows
that are not measured anew stay.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from bench_export import FLOAT, NETWORKS
from machine import machine
from numpy.typing import NDArray
from torch import Tensor, nn

from hwmodel import BitConfig, Precision
from mpsearch.deploy.export import Choices, export_model
from mpsearch.deploy.finished import FinishedModel, finished_model
from mpsearch.deploy.speed import timed
from mpsearch.export.filesize import plan_for
from mpsearch.export.onnx.write import write_onnx
from mpsearch.export.plan import golden
from mpsearch.export.plan.build import float_plan
from mpsearch.export.torch.module import exported_program
from mpsearch.export.torch.pte import Method, pte_bytes, read_pte
from mpsearch.show.console import Console
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.quantizers.quantized import plainly_rounded, quantized

RESULTS = Path(__file__).resolve().parent / "results" / "bench_runtimes.json"
NAMES = ("MobileNetV2", "ResNet-18", "YOLOX-nano")
MIXED = (4, 5, 3, 6, 8)  # bits of one layer after another
SAMPLES, FEW, SECONDS = 4, 64, 4.0
LAYERS = ("Convolution", "FullyConnected", "MatMul")
Array = NDArray[Any]
Row = dict[str, Any]


class Compiled:
    """An ONNX file in OpenVINO with one thread, in single precision where it is float."""

    def __init__(self, data: bytes) -> None:
        import openvino

        how = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        core = openvino.Core()
        self.model = core.compile_model(core.read_model(io.BytesIO(data)), "CPU", how)

    def run(self, leaves: Sequence[Array]) -> list[Array]:
        return list(self.model(dict(enumerate(leaves))).values())

    def layers(self) -> tuple[int, int]:
        """How many layers it computes in integers, and how many there are."""
        found = [node.get_rt_info() for node in self.model.get_runtime_model().get_ops()]
        kinds = [str(info["runtimePrecision"].value) for info in found if info["layerType"].value in LAYERS]
        return sum(kind in ("u8", "i8") for kind in kinds), len(kinds)


def apart(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest error (root mean square) of an output, relative to how far that output varies."""
    pairs = zip(found, expected, strict=True)
    return max(float(np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std()) for ours, theirs in pairs)


def configs(network: Network) -> Iterator[tuple[str, BitConfig]]:
    """8 bits; 4 bits and 3 to 8 bits in turn, ends at 8."""
    names = network.table.names
    for name, bits in (("W8A8", (8,)), ("W4A8", (4,)), ("W3-8A8", MIXED)):
        widths = [8, *islice(cycle(bits), len(names) - 2), 8]
        yield name, BitConfig(names, tuple(Precision(width, 8) for width in widths))


def timing(ours: Callable[[], object], real: Callable[[], object]) -> Row:
    speed = timed({"integer": ours, "float": real}, SECONDS)
    whole, half = speed["float"].median_ms, speed["integer"].median_ms
    return {"integer_ms": round(half, 3), "float_ms": round(whole, 3), "ratio": round(whole / half, 2)}


def in_openvino(name: str, network: Network, leaves: tuple[Tensor, ...]) -> Iterator[Row]:
    real, x = Compiled(write_onnx(float_plan(network), {}, FLOAT).SerializeToString()), [leaves[0][:1].numpy()]
    for bits, config in configs(network):
        plan = plan_for("onnx", network, plainly_rounded(network, leaves, config, (8,)), leaves)
        ours = Compiled(write_onnx(plan, {}, FLOAT).SerializeToString())
        integers, layers = ours.layers()
        error = apart(ours.run(x), golden.outputs(plan, golden.execute(plan, *x)))
        times = timing(lambda ours=ours: ours.run(x), lambda: real.run(x))  # type: ignore[misc]
        row = {"network": name, "runtime": "openvino", "bits": bits, "integer_layers": integers, "layers": layers}
        yield {**row, "from_golden": round(error, 5), **times}


def in_executorch(name: str, network: Network, leaves: tuple[Tensor, ...]) -> Iterator[Row]:
    """8 bits alone: XNNPACK has no others. Both run with as many threads as ExecuTorch takes."""
    bits, config = next(configs(network))
    plan = plan_for("pt2e", network, plainly_rounded(network, leaves, config, (8,)), leaves)
    sample = tuple(leaf[:1].contiguous() for leaf in leaves)
    data = pte_bytes(exported_program(plan, leaves), {})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.pte"
        path.write_bytes(data)
        _, _, counts = read_pte(path)
    ours = Method(data, name)
    with torch.no_grad():
        real = Method(pte_bytes(torch.export.export(network.module.eval(), sample), {}), "float")
    x = [leaf.numpy() for leaf in sample]
    error = apart(ours.run(x), golden.outputs(plan, golden.execute(plan, *x)))
    row = {"network": name, "runtime": "executorch", "bits": bits, **counts, "bytes": len(data)}
    yield {**row, "from_golden": round(error, 5), **timing(lambda: ours.run(x), lambda: real.run(x))}


class AsModule(nn.Module):
    """A function of arrays as a network of one input and one output."""

    def __init__(self, run: Callable[[Sequence[Array]], Sequence[Array]]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.concatenate([self.run([part.numpy()])[0] for part in x.float().split(1)]))


def exported(model: FinishedModel, form: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_model(model, form, path, Choices(), force=False)
        return path.read_bytes()


def run_in_openvino(model: FinishedModel) -> Row:
    data = exported(model, "onnx")
    compiled = Compiled(data)
    real = Compiled(write_onnx(float_plan(model.loaded.network), {}, FLOAT).SerializeToString())
    x = [next(model.loaded.judge.split.batches(1))[0].single().leaves[0].numpy()]
    integers, layers = compiled.layers()
    measured = model.loaded.judge.measure(AsModule(compiled.run))
    times = timing(lambda: compiled.run(x), lambda: real.run(x))
    return {"integer_layers": integers, "layers": layers, "metrics": measured, "bytes": len(data), **times}


def run_in_qonnx(model: FinishedModel) -> Row:
    """Beside the packed file, on a few samples: qonnx computes in numpy."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    wrapper = ModelWrapper(exported(model, "qonnx")).transform(InferShapes())
    name, result = wrapper.graph.input[0].name, wrapper.graph.output[0].name
    (x,) = (leaf[:FEW].numpy() for leaf in next(model.loaded.judge.split.batches(FEW))[0].single().leaves)
    with torch.no_grad():
        expected = quantized(model.network, model.layers).module(torch.from_numpy(x))[0].numpy()
    found = np.concatenate([execute_onnx(wrapper, {name: x[k : k + 1]})[result] for k in range(len(x))])
    same = float((found.argmax(1) == expected.argmax(1)).mean())
    return {"samples": len(x), "same_decisions": same, "from_packed": round(apart([found], [expected]), 6)}


def network_rows(names: Sequence[str]) -> Iterator[Row]:
    runtimes = {"openvino": in_openvino, "executorch": in_executorch}
    there = [run for module, run in runtimes.items() if importlib.util.find_spec(module)]
    for name in names:
        make, shape = NETWORKS[name]
        samples = Samples.noise(shape, count=SAMPLES)
        network = capture(make(), samples, name)
        for rows in there:
            yield from rows(name, network, network.leaves(samples))


def run_rows(folders: Sequence[str]) -> Iterator[Row]:
    runtimes = {"openvino": run_in_openvino, "qonnx": run_in_qonnx}
    for folder in folders:
        model = finished_model(Path(folder), None, Console())
        packed = {"packed": model.record["metrics"]["finished"], "packed_bytes": model.record["size_bytes"]}
        for name, found in runtimes.items():
            if importlib.util.find_spec(name):
                yield {"run": Path(folder).name, "runtime": name, **packed, **found(model)}


def main() -> None:
    result: Row = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": [], "runs": []}
    names = ("openvino", "executorch", "qonnx", "torch", "onnx")
    result |= {
        "machine": machine(),
        "versions": {name: version(name) for name in names if importlib.util.find_spec(name)},
    }
    keys = {"networks": ("network", "runtime", "bits"), "runs": ("run", "runtime")}
    given = sys.argv[1:]
    names = [name for name in given if name in NETWORKS] if given else NAMES
    folders = [name for name in given if name not in NETWORKS]
    for key, found in (("networks", network_rows(names)), ("runs", run_rows(folders))):
        for row in found:  # what is measured is kept, whatever becomes of the rest
            print(row, flush=True)
            old = [one for one in result[key] if any(one[part] != row[part] for part in keys[key])]
            result[key] = [*old, row]
            RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
