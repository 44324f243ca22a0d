"""Device files: each number with its unit and source, each mistake in one clear line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hwmodel.device import MODELS, list_devices, load_device, parse_device
from hwmodel.errors import InputError
from hwmodel.precision import Precision

GOOD = """
name = "mine"
title = "Mine"
model = "roofline"

[kernels]
unit = "MAC/cycle"
source = "assumed: for the test"
W8A8 = 4
W4A8 = 8

[numbers]
frequency = {value = 1e9, unit = "Hz", source = "datasheet"}
memory_bandwidth = {value = 2e9, unit = "B/s", source = "datasheet"}
output_bits = {value = 8, unit = "bit", source = "assumed: requantized"}
"""


def test_a_good_file_is_read() -> None:
    device = parse_device(GOOD, "mine.toml")
    assert device.precisions == (Precision(4, 8), Precision(8, 8))
    assert device["frequency"] == 1e9
    assert device.numbers["power"].source == "default"
    assert not device.supports(Precision(2, 8))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("frequency =", "frequencey =", r"unknown key 'frequencey'; did you mean frequency\?"),
        ('title = "Mine"', 'title = "Mine"\ncolour = "red"', r"mine.toml: unknown key 'colour'"),
        ('unit = "Hz", ', "", r"frequency has no unit; write \{value = …, unit = 'Hz'"),
        ('unit = "Hz"', 'unit = "MHz"', r"frequency must be in Hz, got 'MHz'"),
        ("value = 1e9", "value = -1e9", r"frequency must be above zero, got -1e\+09"),
        ("value = 1e9", "value = nan", r"frequency must be a number"),
        ("value = 1e9", 'value = "fast"', r"frequency must be a number, got 'fast'"),
        (', source = "datasheet"}\nmemory', "}\nmemory", r"frequency has no source"),
        ('source = "datasheet"}\nmemory', 'source = " "}\nmemory', r"frequency needs a source"),
        ("frequency = {value = 1e9, unit", "frequency = {val = 1e9, unit", r"unknown key 'val'; did you mean value"),
        ('{value = 1e9, unit = "Hz", source = "datasheet"}', "1e9", r"frequency must be \{value = …"),
        ('output_bits = {value = 8, unit = "bit", source = "assumed: requantized"}', "", r"output_bits is missing"),
        ("W4A8 = 8", "W4A8 = 0", r"W4A8 must be above zero, got 0"),
        ("W4A8 = 8", "W4A8 = 2", r"kernel W4A8 is slower than W8A8"),
        ("W4A8 = 8", "W9A8 = 8", r"weight bits must be one of 2-8"),
        ("W4A8 = 8", "int4 = 8", r"a precision looks like W4A8, or .*; got 'int4'"),
        ('unit = "MAC/cycle"', 'unit = "MAC"', r"\[kernels\] must have unit = 'MAC/cycle', got 'MAC'"),
        ('model = "roofline"', 'model = "rooflin"', r"model must be one of systolic, roofline, lookup, got 'rooflin'"),
        ('name = "mine"', "", r"name is missing"),
        ('name = "mine"', "name = 3", r"name must be a text, got 3"),
        ('title = "Mine"', 'title = "Mine"\nbatch = 0', r"batch must be at least 1, got 0"),
        ('title = "Mine"', 'title = "Mine', r"no valid TOML"),
        ('title = "Mine"', 'title = "Mine"\ntable = "rows.csv"', r"table belongs to lookup devices"),
    ],
)
def test_a_mistake_gets_one_line(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError, match=message) as caught:
        parse_device(GOOD.replace(old, new, 1), "mine.toml")
    assert "\n" not in str(caught.value)


def test_a_lookup_device_needs_its_table(tmp_path: Path) -> None:
    head = 'name = "mine"\ntitle = "Mine"\nmodel = "lookup"\n'
    with pytest.raises(InputError, match=r"needs table = 'FILE.csv'"):
        parse_device(head, "mine.toml")
    with pytest.raises(InputError, match="cannot read lookup table"):
        parse_device(head + 'table = "rows.csv"\n', "mine.toml", tmp_path)
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="no readable TOML"):
        load_device(tmp_path / "mine.toml")


@pytest.mark.parametrize("name", list_devices())
def test_every_number_of_every_device_says_where_it_is_from(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert set(device.numbers) == set(MODELS[device.model])
    assert device.caution
    for quantity in (*device.numbers.values(), *device.kernels.values()):
        assert quantity.source == "default" or re.match(
            r"(assumed|derived|fitted|not known)|.*(\d{4}|datasheet|brief|NVIDIA|logs)", quantity.source
        ), quantity
