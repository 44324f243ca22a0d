"""Sizes and operations: published tables and closed forms."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision

from hwmodel import BitConfig, InputError, LayerSpec, LayerTable, Precision
from hwmodel.size import (
    Other,
    PackedLayout,
    bops,
    code_shape,
    cost_table,
    layer_bytes,
    layer_entry,
    packed_bytes,
    weights_only_bytes,
)
from recon.graph.network import capture

MIB = 2**20


@pytest.fixture(scope="module")
def resnet18() -> LayerTable:
    return capture(torchvision.models.resnet18(), torch.zeros(2, 3, 224, 224)).table


@pytest.fixture(scope="module")
def mobilenetv2() -> LayerTable:
    return capture(torchvision.models.mobilenet_v2(), torch.zeros(2, 3, 224, 224)).table


def test_resnet18_counts(resnet18: LayerTable) -> None:
    assert resnet18.macs == 1_814_073_344
    assert resnet18.n_weights == 11_678_912


def hawq(table: LayerTable, bits: int) -> BitConfig:
    """HAWQ-V3's uniform configurations: the first and the last layer keep 8 bits."""
    inner = (Precision(bits, bits),) * (len(table) - 2)
    return BitConfig(table.names, (Precision(8, 8), *inner, Precision(8, 8)))


@pytest.mark.parametrize(("bits", "mib", "gbops"), [(8, 11.1, 116), (4, 5.8, 34)])
def test_hawq_table_of_resnet18(resnet18: LayerTable, bits: int, mib: float, gbops: float) -> None:
    # arXiv 2011.10680, table 1; its "MB" are MiB.
    config = hawq(resnet18, bits)
    assert weights_only_bytes(resnet18, config.wbits) / MIB == pytest.approx(mib, abs=0.05)
    operations = sum(bops(layer, config[layer.name]) for layer in resnet18)
    assert int(operations / 1e9) == gbops  # the table cuts off decimals


def test_four_bit_weights_only(resnet18: LayerTable, mobilenetv2: LayerTable) -> None:
    assert weights_only_bytes(mobilenetv2, [4] * len(mobilenetv2)) / MIB == pytest.approx(1.655, abs=5e-4)
    assert weights_only_bytes(resnet18, [4] * len(resnet18)) / MIB == pytest.approx(5.569, abs=5e-4)


def test_packed_bytes_leave_no_gap() -> None:
    assert [packed_bytes(n, 3) for n in (0, 1, 2, 3, 8, 9)] == [0, 1, 1, 2, 3, 4]


def small(**changes: object) -> LayerSpec:
    fields = {
        "name": "a", "kind": "conv", "in_channels": 4, "out_channels": 6, "kernel": (3, 3), "stride": (1, 1),
        "dilation": (1, 1), "groups": 2, "in_size": (8, 8), "out_size": (8, 8), "block": "a", "tie": "a",
    }  # fmt: skip
    return LayerSpec(**{**fields, **changes})  # type: ignore[arg-type]


def test_layer_bytes_by_hand() -> None:
    layer = small()
    # 108 codes of 3 bits, 6 zero-points of one more, 6 scales and 6 biases of 2 bytes
    assert layer_bytes(layer, Precision(3)) == 41 + 3 + 12 + 12
    # from 5 bits on zero-points have the width of the codes
    assert layer_bytes(layer, Precision(6)) == 81 + 5 + 12 + 12
    # and a scale of 2 bytes and a zero-point of 1 for its inputs
    assert layer_bytes(layer, Precision(3, 8)) == 41 + 3 + 12 + 12 + 3


def test_counts_by_hand() -> None:
    layer = small(uses=2)
    assert (layer.weights_per_channel, layer.n_weights) == (18, 108)
    assert layer.macs == 2 * 108 * 64
    assert (layer.n_activations, layer.n_outputs, layer.depthwise) == (256, 384, False)
    assert small(in_channels=6, groups=6).depthwise


def test_the_cost_table_adds_up_to_the_file() -> None:
    table = LayerTable("m", ((4, 8, 8),), (small(), small(name="b", tie="b", out_channels=8)))
    others = (Other("norm.weight", "F16", (6,)), Other("large", "F32", (2, 3)))
    layout = PackedLayout("file.py:m", '[["float32[4,8,8]"],{}]', table, others, inputs=True)
    candidates = (Precision(2), Precision(3, 4), Precision(8, 8))
    costs = cost_table(table, candidates, layout.fixed_bytes())
    for i, first in enumerate(candidates):
        for k, second in enumerate(candidates):
            config = BitConfig(table.names, (first, second))
            predicted = costs.fixed_bytes + costs.weight_bytes[0, i] + costs.weight_bytes[1, k]
            assert predicted == layout.file_bytes(config)


def test_entries_of_layers_by_hand() -> None:
    assert layer_entry(small(name="x.0"), Precision(3, 8)) == "x.0:3/8:6x2x3x3"
    assert layer_entry(small(name="a b%:", kernel=(1, 1)), Precision(3)) == "a%20b%25::3:6x2"
    ids = small(kind="embedding", kernel=(1, 1), groups=1)
    assert layer_entry(ids, Precision(3, 8)) == "a:3:6x4"  # ids are not quantized
    assert code_shape(ids) == (6, 4)


def test_a_header_by_hand() -> None:
    table = LayerTable("m", ((4, 8, 8),), (small(),))
    layout = PackedLayout("file.py:m", "[[],{}]", table, (Other("o", "F32", (2, 3)),), inputs=True)
    header = json.loads(layout.header(BitConfig(("a",), (Precision(3, 8),)), ""))
    places = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    assert places == {
        "other.o": [0, 24], "biases": [24, 36], "input_scales": [36, 38], "scales": [38, 50], "codes": [50, 91],
        "input_zero_points": [91, 92], "zero_points": [92, 95],
    }  # fmt: skip
    assert header["__metadata__"]["model"] == "file.py:m"
    assert header["__metadata__"]["layers"] == "a:3/8:6x2x3x3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 3}, "3 groups must divide"),
        ({"stride": (0, 1)}, "stride must be at least 1"),
        ({"uses": 0}, "uses must be at least 1"),
        ({"in_size": (-1, 8)}, "must not be negative"),
    ],
)
def test_an_impossible_layer_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**changes)


def test_layers_with_a_tie_share_a_gene() -> None:
    table = LayerTable("m", ((4, 8, 8),), (small(), small(name="b", tie="b"), small(name="c", tie="a")))
    assert table.genes == ((0, 2), (1,))
    assert LayerTable.from_json(table.to_json()) == table
    with pytest.raises(InputError, match="unique"):
        LayerTable("m", ((4, 8, 8),), (small(), small()))


def test_bit_configs_go_to_json_and_back() -> None:
    config = BitConfig(("a", "b"), (Precision(3), Precision(4, 8)))
    assert config.to_json() == {"a": "W3A32", "b": "W4A8"}
    assert BitConfig.from_json(config.to_json()) == config
    assert (config.wbits, config["b"]) == ((3, 4), Precision(4, 8))
    for text in ("W9A8", "W4", "4,8", "W4A1"):
        with pytest.raises(InputError):
            Precision.parse(text)
