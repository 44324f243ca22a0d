"""Sizes of exported files are known before they are written: the same to the byte, or to TFLite's alignment."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from runtime_nets import low_bit
from torch import Tensor, nn

from hwmodel import BitConfig, InputError, Precision
from hwmodel.filesize import FORMS
from mpsearch.export.filesize import about, file_bytes, fixed_bytes, longest, numpy_dtypes, plan_for
from mpsearch.export.onnx.write import fill_up, write_onnx
from mpsearch.export.tflite.write import filled_tflite
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.quantizers.quantized import plainly_rounded

BUDGETS = {"size_bytes": 1.5e6}
ALIGNMENT = 16  # of TFLite's tables and vectors


def require(form: str) -> None:
    module = {"onnx": "onnx", "tflite": "ai_edge_litert"}.get(form.split("-")[0])
    if module and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def require_as_predicted(name: str, network: Network, leaves: tuple[Tensor, ...], abits: int = 8) -> None:
    """A file at mixed bits has, filled up, the bytes that were predicted of the network alone."""
    form, draw = FORMS[name], random.Random(0)
    fixed = fixed_bytes(
        form, network, longest("net", "f" * 16, network.table.names, BUDGETS), tuple(leaf[:2] for leaf in leaves), abits
    )
    choice = (4, 8) if name == "tflite-int4" else (2, 3, 4, 5, 6, 8)
    for symmetric in ((4, 8),) if name == "tflite-int4" else ((8,), ()):
        config = BitConfig(network.table.names, tuple(Precision(draw.choice(choice), abits) for _ in network.table))
        plan = plan_for(name, network, plainly_rounded(network, leaves, config, symmetric), leaves)
        predicted = fixed + sum(form.layer_bytes(*pair) for pair in zip(network.table, config.precisions, strict=True))
        metadata = about("net", "f" * 16, "budget", config, BUDGETS, 12345)
        written = file_bytes(name, network, plan, metadata)
        if name == "c":
            assert written == predicted
        elif name.startswith("tflite"):
            assert written <= predicted
            filled = filled_tflite(plan, metadata, name == "tflite-int4", predicted)
            assert predicted - ALIGNMENT < len(filled) <= predicted
        else:
            model = write_onnx(plan, metadata, numpy_dtypes(network), name == "onnx-packed")
            assert model.ByteSize() == written <= predicted
            fill_up(model, predicted)
            assert len(model.SerializeToString()) == predicted


@pytest.mark.parametrize(
    ("name", "form"), [*(("neck", form) for form in FORMS), ("residual", "onnx-packed"), ("smooth", "onnx-packed")]
)
def test_files_of_small_networks_are_as_predicted(name: str, form: str) -> None:
    require(form)
    network, _, leaves = low_bit(name, Precision(8, 8))
    require_as_predicted(form, network, leaves)


def test_so_are_weight_only_files() -> None:
    require("onnx")
    network, _, leaves = low_bit("residual", Precision(8))
    for form in ("onnx", "onnx-packed"):
        require_as_predicted(form, network, leaves, 32)
    with pytest.raises(InputError, match="--size-of c needs quantized activations"):
        FORMS["c"].layer_bytes(network.table[0], Precision(4))


def test_a_filled_file_computes_the_same() -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    network, layers, leaves = low_bit("shuffled", Precision(3, 8))
    model = write_onnx(plan_for("onnx", network, layers, leaves), {}, numpy_dtypes(network))
    plain = model.SerializeToString()
    for more in range(30, 160):  # across where lengths take another byte
        model.ParseFromString(plain)
        fill_up(model, len(plain) + more)
        assert model.ByteSize() == len(plain) + more
    fed = {"x": leaves[0].numpy()}
    found = [
        runtime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, fed)[0]
        for data in (plain, model.SerializeToString())
    ]
    np.testing.assert_array_equal(*found)


def zoo(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return torchvision.models.get_model(name, weights=None).eval()

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, form) for name in ("embedded", "resnet18") for form in FORMS), ("mobilenet_v3_small", "onnx-packed")],
)
def test_files_of_known_networks_are_as_predicted(name: str, form: str) -> None:
    require(form)
    size = 48 if name == "embedded" else 64
    samples = Samples.noise((3, size, size), count=4)
    network = capture(zoo("mobilenet_v2" if name == "embedded" else name)(), samples, name)
    require_as_predicted(form, network, network.leaves(samples))
