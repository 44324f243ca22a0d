"""Bits that other tools have assigned: their files as they write them, and whose layer is whose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwmodel import InputError
from mpsearch.request.assignment import read_assignment
from mpsearch.request.names import match, words_of

# Torchvision's MobileNetV2, pytorchcv's ResNet-18 and a residual network of our own, in parts.
MOBILENET = ("features.0.0", "features.1.conv.0.0", "features.1.conv.1", "features.2.conv.0.0", "classifier.1")
RESNET = (
    "features.init_block.conv.conv",
    "features.stage1.unit1.body.conv1.conv",
    "features.stage1.unit1.body.conv2.conv",
    "features.stage2.unit1.body.conv1.conv",
    "features.stage2.unit1.body.conv2.conv",
    "features.stage2.unit1.identity_conv.conv",
    "output",
)
HAWQ = {
    "bit_config_resnet18": {
        "quant_input": 8,
        "quant_init_block_convbn": 8,
        "quant_act_int32": 16,
        "stage1.unit1.quant_act": 4,
        "stage1.unit1.quant_convbn1": 4,
        "stage1.unit1.quant_act1": 8,
        "stage1.unit1.quant_convbn2": 2,
        "stage1.unit1.quant_act_int32": 16,
        "stage2.unit1.quant_act": 8,
        "stage2.unit1.quant_convbn1": 8,
        "stage2.unit1.quant_act1": 4,
        "stage2.unit1.quant_convbn2": 4,
        "stage2.unit1.quant_identity_convbn": 8,
        "stage2.unit1.quant_act_int32": 16,
        "quant_act_output": 8,
        "quant_output": 8,
    }
}


def read(folder: Path, data: Any, layers: tuple[str, ...]) -> tuple[list[str], str]:
    path = folder / "bits.json"
    path.write_text(json.dumps(data))
    found = read_assignment(path, layers)
    assert found.config.layers == layers
    return [str(precision) for precision in found.config.precisions], found.note


def test_hawq_with_the_inputs_that_layers_read(tmp_path: Path) -> None:
    bits, note = read(tmp_path, HAWQ, RESNET)
    assert bits == ["W8A8", "W4A4", "W2A8", "W8A8", "W4A4", "W8A8", "W8A8"]
    assert "(HAWQ)" in note
    assert "layers by similar names: 6, such as init_block_conv for features.init_block.conv.conv" in note
    assert "entries about other tensors: 3" in note


def test_hawq_in_the_order_of_a_network_with_other_names(tmp_path: Path) -> None:
    layers = (
        "conv1",
        "layer1.0.conv1",
        "layer1.0.conv2",
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer2.0.downsample.0",
        "fc",
    )
    bits, note = read(tmp_path, HAWQ, layers)
    assert bits == ["W8A8", "W4A4", "W2A8", "W8A8", "W4A4", "W8A8", "W8A8"]
    assert "no name is that of a layer: taken in their order, please check" in note
    with pytest.raises(InputError, match="names 0 of 6 layers"):
        read(tmp_path, HAWQ, layers[:-1])


def test_hawq_of_a_mobile_network(tmp_path: Path) -> None:
    data = {
        "quant_input": [8, "hook"],
        "init_block": 8,
        "quant_act_int32": 16,
        "features.stage4.unit5.quant_act": 4,
        "features.stage4.unit5.conv1": 4,
        "features.stage4.unit5.conv1.conv": 4,
        "features.stage4.unit5.conv1.bn": 4,
        "features.stage4.unit5.quant_act1": 8,
        "features.stage4.unit5.conv2": 2,
        "features.stage4.unit5.quant_act_int32": 16,
        "quant_act_before_final_block": 8,
        "features.final_block": 8,
        "quant_act_int32_final": 16,
        "quant_act_output": 8,
        "output": 8,
    }
    unit = "features.stage4.unit5"
    layers = (
        "features.init_block.conv",
        f"{unit}.conv1.conv",
        f"{unit}.conv2.conv",
        "features.final_block.conv",
        "output",
    )
    bits, note = read(tmp_path, data, layers)
    assert bits == ["W8A8", "W4A4", "W2A8", "W8A8", "W8A8"]
    assert "entries about other tensors: 5" in note


def test_mct_names_of_folded_convolutions(tmp_path: Path) -> None:
    data = {
        "features_1_conv_1_bn": 3,
        "features_0_0_bn": 8,
        "features_1_conv_0_0_bn": 4,
        "features_2_conv_0_0_bn": [2, 4],
        "classifier_1": {"weight_bits": 5, "activation_bits": 8},
    }
    bits, note = read(tmp_path, data, MOBILENET)
    assert bits == ["W8A32", "W4A32", "W3A32", "W2A4", "W5A8"]
    assert note.startswith("bits.json: layers by similar names: 5")


WIDTHS = dict(zip(MOBILENET, (8, 4, 3, 2, 8), strict=True))
V061 = {
    "version": "0.6.1",
    "param_encodings": {
        f"{name}.weight": [{"bitwidth": bits, "dtype": "int", "is_symmetric": "True", "scale": 0.1, "offset": -8}] * 3
        for name, bits in WIDTHS.items()
    },
    "activation_encodings": {
        name: {"input": {"0": {"bitwidth": 8, "dtype": "int"}}, "output": {"0": {"bitwidth": 8}}} for name in MOBILENET
    },
}
V100 = {
    "version": "1.0.0",
    "param_encodings": [
        {"name": f"{name}.weight", "dtype": "INT", "enc_type": "PER_CHANNEL", "bw": bits}
        for name, bits in WIDTHS.items()
    ]
    + [{"name": "classifier.1.bias", "bw": 32}],
    "activation_encodings": [{"name": "input", "bw": 8, "dtype": "INT"}],
}
V200 = {
    "version": "2.0.0",
    "encodings": [
        {"name": f"{name}.weight", "output_dtype": f"int{8 if bits == 3 else bits}", "y_scale": [0.1], "axis": 0}
        for name, bits in WIDTHS.items()
    ]
    + [{"name": "input", "output_dtype": "uint8", "y_scale": 0.1, "y_zero_point": 3}],
}


def test_aimet_in_every_version(tmp_path: Path) -> None:
    old, note = read(tmp_path, V061, MOBILENET)
    assert old == ["W8A8", "W4A8", "W3A8", "W2A8", "W8A8"]
    assert note == ""
    new, note = read(tmp_path, V100, MOBILENET)
    assert new == ["W8A32", "W4A32", "W3A32", "W2A32", "W8A32"]
    assert note == "bits.json (AIMET): entries about other tensors: 2; inputs stay float"
    newest, note = read(tmp_path, V200, MOBILENET)
    assert newest == ["W8A32", "W4A32", "W8A32", "W2A32", "W8A32"]  # 3 bits have no type there
    assert "entries about other tensors: 1" in note


SCOPES = [
    [4, "MobileNetV2/Sequential[features]/ConvNormActivation[0]/NNCFConv2d[0]/conv2d_0|WEIGHT"],
    [2, "TargetType.OPERATION_WITH_WEIGHTS MobileNetV2/Sequential[features]/X[1]/Sequential[conv]/Y[0]/NNCFConv2d[0]"],
    [4, "TargetType.OPERATOR_POST_HOOK MobileNetV2/Sequential[features]/ConvBNReLU[0]/ReLU6[2]/hardtanh_0"],
    [4, "/nncf_model_input_0|OUTPUT"],
    [
        3,
        "M/Sequential[features]/X[2]/Sequential[conv]/Y[0]/NNCFConv2d[0]/ModuleDict[pre_ops]/UpdateWeight[0]/Quant[op]",
    ],
]


@pytest.mark.parametrize(
    ("data", "rest"),
    [
        (
            {"compression": {"weights": {"bits": 6}, "initializer": {"precision": {"bitwidth_per_scope": SCOPES}}}},
            "W6A32",
        ),
        (
            {"compression": [{"algorithm": "x"}, {"initializer": {"precision": {"bitwidth_per_scope": SCOPES}}}]},
            "W8A32",
        ),
        ({"bitwidth_per_scope": SCOPES}, "W8A32"),
    ],
    ids=("configuration", "several algorithms", "the list alone"),
)
def test_nncf_scopes(tmp_path: Path, data: Any, rest: str) -> None:
    bits, note = read(tmp_path, data, MOBILENET)
    assert bits == ["W4A32", "W2A32", rest, "W3A32", rest]
    assert f"{rest} for what it does not name: 'features.1.conv.1', 'classifier.1'" in note
    assert "entries about other tensors: 2" in note


def test_what_is_not_found_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, {"features.0.0": 4, "conv_stem": 8, "head": 8}, MOBILENET)
    message = str(caught.value)
    assert "names 1 of 5 layers: nothing for 'features.1.conv.0.0'" in message
    assert "'conv_stem', 'head' in it is left" in message
    extra = {**dict.fromkeys(MOBILENET, 4), "aux.fc": 4}
    assert read(tmp_path, extra, MOBILENET)[1] == "bits.json: no layer is called 'aux.fc'"


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({"a": {"x": 4, "y": 4}, "b": {"x": 2, "y": 4}}, "it holds 2 assignments (a, b, …): keep one"),
        ([1, 2], "expected an object"),
        ({}, "expected an object"),
        ({"x": 16, "y": 4}, "x: weight bits must be one of 2-8"),
        ({"x": True, "y": 4}, "x: bits are whole numbers, got True"),
        ({"x": 4.5, "y": 4}, "x: bits are whole numbers, got 4.5"),
        ({"x": "four", "y": 4}, "x: a precision looks like W4A8"),
        (
            {"param_encodings": {"x.weight": [{"bitwidth": 4}, {"bitwidth": 8}]}},
            "channels of one tensor have [4, 8] bits",
        ),
        ({"encodings": [{"name": "x.weight", "output_dtype": "float8e5m2"}]}, "'float8e5m2' has no bits of integers"),
        ({"param_encodings": [{"bw": 4}]}, "'name'"),
        ({"bitwidth_per_scope": [[4]]}, "is no bit assignment"),
        ({"x.quant_convbn": "many"}, "bits are whole numbers, got 'many'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(tmp_path: Path, data: Any, part: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, data, ("x", "y"))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_in_the_order_of_certainty() -> None:
    assert match(("a.b", "b"), ("b", "a.b")).found == {"a.b": "a.b", "b": "b"}  # equal names first
    assert match(("net.b", "c.d"), ("b", "x.c.d")).found == {"net.b": "b", "c.d": "x.c.d"}
    both = match(("x.conv", "y.conv"), ("conv",))  # either might be meant
    assert both.found == {}
    assert both.missing == ("x.conv", "y.conv")
    assert both.left == ("conv",)
    assert match(("x.conv", "y.conv"), ("x.conv", "conv")).found == {"x.conv": "x.conv", "y.conv": "conv"}
    assert match(("features.0.0", "features.1.0.0"), ("features_1_0_0", "features_0_0")).found == {
        "features.0.0": "features_0_0",
        "features.1.0.0": "features_1_0_0",
    }
    assert words_of("features_1/Conv.0_bn.weight") == ("features", "1", "conv", "0")
    assert words_of("bn_conv1") == ("conv1",)
    assert words_of("bn") == ("bn",)


def test_a_layer_that_is_called_like_a_quantizer_of_hawq(tmp_path: Path) -> None:
    assert read(tmp_path, {"quant_conv": "W4A8", "up.quant_1": 3}, ("quant_conv", "up.quant_1"))[0] == ["W4A8", "W3A32"]


def test_a_network_of_one_layer(tmp_path: Path) -> None:
    assert read(tmp_path, {"fc": {"weight_bits": 4}}, ("fc",))[0] == ["W4A32"]
