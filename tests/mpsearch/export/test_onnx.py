"""ONNX files in onnxruntime: integer kernels, the golden answer, weight-only files that are exact."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runtime_nets import NETS, low_bit

from hwmodel import BitConfig, Precision
from mpsearch.export.onnx.write import write_onnx
from mpsearch.export.plan import golden
from mpsearch.export.plan.build import build_plan
from mpsearch.export.plan.records import Plan
from recon.graph.network import capture
from recon.graph.samples import Samples
from recon.quantizers.quantized import plainly_rounded, quantized

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def made(plan: Plan) -> Any:
    """The checked model of a plan."""
    model = write_onnx(plan, {"key": "value"}, (np.dtype(np.float32),))
    onnx.checker.check_model(model, full_check=True)
    return model


def session(model: Any, optimized: Path | None = None) -> Any:
    """The model in onnxruntime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("precision", ["W8A8", "W2A8", "W4A4"])
@pytest.mark.parametrize("name", NETS)
def test_the_runtime_computes_in_integers_what_the_plan_says(name: str, precision: str, tmp_path: Path) -> None:
    network, layers, leaves = low_bit(name, Precision.parse(precision))
    plan = build_plan(network, layers, leaves)
    running = session(made(plan), tmp_path / "optimized.onnx")
    found = running.run(None, {"x": leaves[0].numpy()})
    expected = golden.outputs(plan, golden.execute(plan, leaves[0].numpy()))
    for ours, theirs in zip(found, expected, strict=True):
        apart = np.sqrt(np.mean((ours - theirs) ** 2))
        assert apart < (0.15 if precision == "W4A4" else 0.05) * theirs.std()
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert not kernels["Conv"] + kernels["Gemm"] + kernels["FusedConv"], kernels
    assert kernels["QLinearConv"] + kernels["QGemm"] == len(network.table)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("name", NETS)
def test_weight_only_files_are_exact(name: str, bits: int) -> None:
    network, layers, leaves = low_bit(name, Precision(bits))
    model = made(build_plan(network, layers, leaves))
    assert not [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    for count in (1, len(leaves[0])):  # any number of samples
        found = session(model).run(None, {"x": leaves[0][:count].numpy()})
        with torch.no_grad():
            expected = quantized(network, layers).module(leaves[0][:count])
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


def test_codes_are_stored_at_their_bits() -> None:
    sizes = {}
    for bits in (2, 4, 8):
        network, layers, leaves = low_bit("shuffled", Precision(bits, 8))
        model = made(build_plan(network, layers, leaves))
        kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
        assert ({2: "UINT2", 4: "UINT4", 8: "INT8"}[bits]) in kinds
        sizes[bits] = model.ByteSize()
    assert sizes[2] < sizes[4]


def test_the_same_model_is_the_same_bytes() -> None:
    files = []
    for _ in range(2):
        network, layers, leaves = low_bit("neck", Precision(4, 8))
        files.append(made(build_plan(network, layers, leaves)).SerializeToString(deterministic=True))
    assert files[0] == files[1]


@pytest.mark.parametrize("precision", ["W3A8", "W2A32", "W5A4"])
@pytest.mark.parametrize("name", ["residual", "shuffled"])
def test_packed_files_compute_the_same(name: str, precision: str) -> None:
    network, layers, leaves = low_bit(name, Precision.parse(precision))
    plan = build_plan(network, layers, leaves)
    packed = write_onnx(plan, {}, (np.dtype(np.float32),), packed=True)
    onnx.checker.check_model(packed)
    x = {"x": leaves[0].numpy()}
    for ours, theirs in zip(session(packed).run(None, x), session(made(plan)).run(None, x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_functions_are_integer_kernels_within_steps(tmp_path: Path) -> None:
    class Curves(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (torch.nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.three(torch.nn.functional.silu(self.two(torch.nn.functional.hardswish(self.one(x)))))
            return y

    torch.manual_seed(0)
    samples = Samples.noise((3, 24, 24), count=8)
    network = capture(Curves().eval(), samples, "curves")
    leaves = tuple(4 * leaf for leaf in network.leaves(samples))
    layers = plainly_rounded(network, leaves, BitConfig.uniform(network.table.names, Precision(8, 8)), (8,))
    plan = build_plan(network, layers, leaves)
    running = session(made(plan), tmp_path / "optimized.onnx")
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kernels["QLinearMul"] == 2
    assert kernels["QLinearAdd"] == kernels["QLinearSigmoid"] == 1
    assert not kernels["HardSwish"] + kernels["Sigmoid"] + kernels["Mul"]
    (expected,) = golden.outputs(plan, golden.execute(plan, leaves[0].numpy()))
    (found,) = running.run(None, {"x": leaves[0].numpy()})
    grid = plan.tensors[plan.outputs[0]].grid
    assert grid is not None
    assert np.abs(found - expected).max() < 5 * grid.scale  # of three layers
    assert np.abs(found - expected).mean() < 0.5 * grid.scale


def test_space_to_depth_is_on_real_numbers(tmp_path: Path) -> None:
    network, layers, leaves = low_bit("neck", Precision(8, 8))
    session(made(build_plan(network, layers, leaves)), tmp_path / "optimized.onnx")
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kernels["SpaceToDepth"] == 1


def test_a_step_for_every_channel_in_the_runtime() -> None:
    network, layers, leaves = low_bit("smooth", Precision(4, 8))
    plan = build_plan(network, layers, leaves)
    (found,) = session(made(plan)).run(None, {"x": leaves[0].numpy()})
    (golden_answer,) = golden.outputs(plan, golden.execute(plan, leaves[0].numpy()))
    assert np.sqrt(np.mean((found - golden_answer) ** 2)) < 0.05 * golden_answer.std()
    with torch.no_grad():
        (expected,) = quantized(network, layers).module(*leaves)
    assert np.sqrt(np.mean((found - expected.numpy()) ** 2)) < 0.05 * float(expected.std())
