"""QONNX files, run by qonnx's own executor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from runtime_nets import low_bit

from hwmodel import Precision
from mpsearch.export.onnx.qonnx import write_qonnx
from mpsearch.export.plan.build import simulated_plan
from recon.quantizers.quantized import quantized

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")


@pytest.mark.parametrize(("name", "precision"), [("residual", "W4A4"), ("excited", "W3A8"), ("residual", "W2A32")])
def test_quant_nodes_compute_what_is_simulated(name: str, precision: str) -> None:
    pytest.importorskip("qonnx", reason="qonnx is not installed: pip install qonnx")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    network, layers, leaves = low_bit(name, Precision.parse(precision))
    model = write_qonnx(simulated_plan(network, layers), {}, (np.dtype(np.float32),))
    with torch.no_grad():
        (expected,) = quantized(network, layers).module(leaves[0][:2])
    running = ModelWrapper(model).transform(InferShapes())
    for k in range(2):
        (found,) = execute_onnx(running, {"x": leaves[0][k : k + 1].numpy()}).values()
        # One activation on the border between two codes may fall to the other side.
        np.testing.assert_allclose(found[0], expected[k].numpy(), atol=0.02 * float(expected.std()))


def test_every_layer_and_its_input_have_a_quant_node() -> None:
    network, layers, _ = low_bit("residual", Precision(4, 8))
    model = write_qonnx(simulated_plan(network, layers), {}, (np.dtype(np.float32),))
    quants = [node for node in model.graph.node if node.op_type == "Quant"]
    assert len(quants) == 2 * len(network.table)
