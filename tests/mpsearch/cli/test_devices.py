"""Devices on the command line: listed, shown with units and sources, and costed layer by layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commandline import Command

from hwmodel.device import list_devices, load_device
from hwmodel.latency import device_costs
from mpsearch.sources.models import load_model
from recon.graph.network import capture


def test_devices_are_listed_and_shown(command: Command) -> None:
    listed = command("devices")
    assert listed.code == 0
    for name in list_devices():
        assert name in listed.out
        shown = command("devices", name)
        assert shown.code == 0
        device = load_device(name)
        for key, quantity in device.numbers.items():
            assert key in shown.out
            assert quantity.unit in shown.out
        assert "…" not in shown.out
    wrong = command("devices", "bitfusio")
    assert wrong.code == 2
    assert "did you mean bitfusion?" in wrong.err


def test_layers_on_a_device(tiny: Path, command: Command) -> None:
    model = f"{tiny / 'net.py'}:net"
    shown = command("layers", "--model", model, "--data", tiny / "data", "--device", "npu-int4")
    assert shown.code == 0
    device = load_device("npu-int4")
    table = capture(load_model(model, None, demo=False).model, torch.zeros(2, 3, 12, 12)).table
    costs = device_costs(table, device.precisions, device)
    total = next(line for line in shown.out.splitlines() if line.strip().startswith("total"))
    assert [float(cell) for cell in total.replace(",", "").split()[1:]] == pytest.approx(
        (1e6 * costs.latency_s.sum(axis=0)).tolist(), abs=0.006
    )


def test_a_measured_table_is_a_device(tiny: Path, tmp_path: Path, command: Command) -> None:
    pytest.importorskip("onnxruntime")
    model, out = ("--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data"), tmp_path / "here.csv"
    assert command("profile", *model, "--rounds", 3, "--out", out).code == 0
    shown = command("layers", *model, "--device", out)
    assert shown.code == 0
    assert "W8A8" in shown.out
    assert "measured" in shown.out
    assert command("profile", *model, "--out", tmp_path / "here.txt").code == 2
