"""Targets: what runtimes ask for, as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwmodel import InputError, Precision
from hwmodel.device import list_devices, load_device, parse_device
from hwmodel.target import list_targets, load_target, parse_target

GOOD = """
name = "mine"
title = "A runtime"
formats = ["onnx"]
weight_bits = [8, 4]
activation_bits = [8]
symmetric_bits = [4]
cuts_by_range = true
channel_steps = true
source = "assumed: for a test"
"""


@pytest.mark.parametrize("name", list_targets())
def test_targets_that_come_along(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert set(target.symmetric_bits) <= set(target.weight_bits)
    target.require([Precision(8, 8)])


def test_a_target_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    target = load_target(str(path))
    assert target.precisions == (Precision(4, 8), Precision(8, 8))
    with pytest.raises(InputError, match=r"target mine does not run W2A8, W4A32: it has weights of 4, 8 bits"):
        target.require([Precision(2, 8), Precision(4), Precision(8, 8)])


@pytest.mark.parametrize(
    ("line", "instead", "message"),
    [
        ('title = "A runtime"', "", "title is missing"),
        ("weight_bits = [8, 4]", "weight_bits = [8, 4, 1]", "weight_bits must be a list of bits"),
        ("weight_bits = [8, 4]", "weight_bits = []", "must not be empty"),
        ('formats = ["onnx"]', 'formats = "onnx"', "formats must be a list of names"),
        ('source = "assumed: for a test"', 'source = ""', "source must be a text"),
        ('name = "mine"', 'name = "mine"\nbits = 3', "unknown key 'bits'"),
        ("cuts_by_range = true", "cuts_by_range = 1", "cuts_by_range must be true or false"),
        ('name = "mine"', "name = ", "no valid TOML"),
    ],
)
def test_damaged_files_are_refused(line: str, instead: str, message: str) -> None:
    assert line in GOOD
    with pytest.raises(InputError, match=message):
        parse_target(GOOD.replace(line, instead), "mine.toml")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean onnxruntime"):
        load_target("onxruntime")
    with pytest.raises(InputError, match="expected a file or one of c, executorch"):
        load_target("xyzzyxyzzy")


def test_a_device_may_name_its_target() -> None:
    assert {load_device(name).target for name in list_devices()} <= {None, *list_targets()}
    text = """
name = "board"
title = "A board"
model = "roofline"
target = "tflite"
[kernels]
unit = "MAC/cycle"
source = "assumed: for a test"
W8A8 = 1
[numbers]
frequency = {value = 1e9, unit = "Hz", source = "assumed: for a test"}
memory_bandwidth = {value = 1e9, unit = "B/s", source = "assumed: for a test"}
output_bits = {value = 8, unit = "bit", source = "assumed: for a test"}
"""
    assert parse_device(text, "board.toml").target == "tflite"
