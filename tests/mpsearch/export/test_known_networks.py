"""Every exporter takes every network that the benchmark measures, at a small input size."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from hwmodel import BitConfig, Precision
from mpsearch.export.c.write import constant_bytes
from mpsearch.export.filesize import plan_for
from mpsearch.export.onnx.qonnx import write_qonnx
from mpsearch.export.onnx.real import write_real
from mpsearch.export.onnx.session import FLOAT_LAYERS, INTEGER_LAYERS, kernels
from mpsearch.export.onnx.write import write_onnx
from mpsearch.export.plan.build import simulated_plan
from mpsearch.export.tflite.write import write_tflite
from mpsearch.export.torch.module import exported_program
from mpsearch.sources.factory import call_factory
from recon.graph.network import capture
from recon.graph.samples import Samples
from recon.quantizers.quantized import plainly_rounded

for module in ("onnxruntime", "ai_edge_litert"):
    pytest.importorskip(module, reason="the extras onnx and tflite are not installed")

DATA = Path(os.environ.get("MPSEARCH_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data") / "models"
FILES = {"efficientnet_lite0": "efficientnet_lite0_imagenet.py", "yolox_nano": "yolox_nano_coco.py"}
FLOAT = (np.dtype(np.float32),)


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name not in FILES:
        return torchvision.models.get_model(name, weights=None).eval()
    if not (DATA / FILES[name]).is_file():
        pytest.skip(f"{DATA / FILES[name]} is not there")
    return call_factory(f"{DATA / FILES[name]}:factory").eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "resnet18", "mobilenet_v3_small", "regnet_y_400mf", "efficientnet_lite0", "yolox_nano"],
)
def test_every_exporter_takes_the_network(name: str) -> None:
    samples = Samples.noise((3, 64, 64), count=2)
    network = capture(network_of(name), samples, name)
    leaves = network.leaves(samples)
    layers = plainly_rounded(network, leaves, BitConfig.uniform(network.table.names, Precision(4, 8)), (8,))
    plan, whole = (plan_for(form, network, layers, leaves) for form in ("onnx", "tflite"))
    assert not whole.floats()
    for packed in (False, True):
        found = kernels(write_onnx(plan, {}, FLOAT, packed).SerializeToString(), name)
        assert sum(found[kind] for kind in INTEGER_LAYERS) == len(network.table)
        assert not sum(found[kind] for kind in FLOAT_LAYERS)
    assert len(write_tflite(whole, {})) > constant_bytes(plan_for("c", network, layers, leaves)) > 0
    assert write_qonnx(simulated_plan(network, layers), {}, FLOAT).ByteSize() > 0
    assert len(write_real(plan, {}, FLOAT).weights) == len(network.table)
    quantized = [node for node in exported_program(whole, leaves).graph.nodes if "quantize_per" in str(node.target)]
    assert len(quantized) > 2 * len(network.table)
