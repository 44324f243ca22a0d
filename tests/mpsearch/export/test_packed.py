"""The packed file: its size is what was predicted, and what it gives back is what was written."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.numpy import save_file

import mpsearch
from hwmodel import WEIGHT_BITS, BitConfig, InputError, Precision
from hwmodel.size import cost_table
from mpsearch.export.packed import layout_of, load_packed, others, pack, save_packed, unpack
from recon.graph.network import trace
from recon.quantizers.quantized import plainly_rounded, quantized

FAMILIES = (
    "mobilenet_v2", "mobilenet_v3_small", "resnet18", "regnet_y_400mf", "squeezenet1_1", "shufflenet_v2_x0_5",
    "mnasnet0_5", "efficientnet_b0", "alexnet", "densenet121",
)  # fmt: skip
IMAGES = torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_codes_are_packed_without_gaps(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for count in (0, 1, 7, 8, 1001):
        codes = rng.integers(0, 2**bits, count).astype(np.uint8)
        packed = pack(codes, bits)
        assert len(packed) == -(-count * bits // 8)
        assert np.array_equal(unpack(packed, bits, count), codes)


def test_the_packing_is_little_endian() -> None:
    assert pack(np.array([1, 2, 3, 0], np.uint8), 2).tolist() == [0b00111001]
    assert pack(np.array([5, 3], np.uint8), 3).tolist() == [0b00011101]


@pytest.mark.parametrize("abits", [(32,), (8, 4)], ids=["weights", "weights-and-inputs"])
@pytest.mark.parametrize("name", FAMILIES)
def test_files_have_the_predicted_size_and_give_the_model_back(
    name: str, abits: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    side = 64
    reference = f"torchvision:{name}?num_classes=10"
    model = torchvision.models.get_model(name, num_classes=10).eval()
    network = trace(model, (3, side, side), reference)
    choices = [Precision(*bits) for bits in itertools.product(WEIGHT_BITS, abits)]
    columns = [layer % len(choices) for layer in range(len(network.table))]
    config = BitConfig(network.table.names, tuple(choices[column] for column in columns))
    x = torch.randn(8, 3, side, side)
    layers = plainly_rounded(network, x, config)
    assert layers.config(network.table.names) == config
    path = tmp_path / "model.safetensors"
    written = save_packed(path, network, reference, layers)

    layout = layout_of(network, reference, abits != (32,))
    assert path.stat().st_size == written == layout.file_bytes(config)
    costs = cost_table(network.table, choices, layout.fixed_bytes())
    assert written == costs.fixed_bytes + int(costs.weight_bytes[np.arange(len(network.table)), columns].sum())

    loaded = mpsearch.load_packed(path)
    expected = quantized(network, layers)
    for tensor in others(expected).values():  # what stays unquantized is stored in half precision
        tensor.copy_(tensor.half())
    with torch.inference_mode():
        assert torch.equal(loaded(x), expected.model(x))


def test_every_uniform_file_has_the_predicted_size(tmp_path: Path) -> None:
    network = trace(torchvision.models.squeezenet1_1(num_classes=3), (3, 32, 32), "torchvision:squeezenet1_1")
    layout = layout_of(network, "torchvision:squeezenet1_1?num_classes=3")
    for bits in WEIGHT_BITS:
        config = BitConfig.uniform(network.table.names, Precision(bits))
        path = tmp_path / f"{bits}.safetensors"
        written = save_packed(path, network, layout.reference, plainly_rounded(network, IMAGES, config))
        assert path.stat().st_size == written == layout.file_bytes(config)


def test_what_is_no_packed_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no packed model"):
        load_packed(tmp_path / "none.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not a model")
    with pytest.raises(InputError, match="damaged"):
        load_packed(damaged)
    other = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, other)
    with pytest.raises(InputError, match="not a packed model"):
        load_packed(other)


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    network = trace(torchvision.models.squeezenet1_1(num_classes=3), (3, 32, 32), "torchvision:squeezenet1_1")
    config = BitConfig.uniform(network.table.names, Precision(4))
    path, layers = tmp_path / "model.safetensors", plainly_rounded(network, IMAGES, config)
    save_packed(path, network, "torchvision:squeezenet1_1?num_classes=4", layers)
    with pytest.raises(InputError, match="does not fit"):
        load_packed(path)
