"""Faults that were found by reading: NaN taken for an improvement, and what a resumed reconstruction begins with."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from captured import of_images
from torch import Tensor, nn

from hwmodel import BitConfig, Precision
from recon.fit.checkpoint import Progress
from recon.fit.report import BlockReport
from recon.fit.task import UnitTask
from recon.graph.network import Network
from recon.quantizers.quantized import QuantizedLayers, plainly_rounded
from recon.reconstruct import Reconstruction, reconstruct
from recon.settings import Settings


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def network() -> Network:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()]
    return of_images(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)), (3, 8, 8), "small")


def losses(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Every unit's losses: of plain rounding, of the start, and of the cycles of descent."""
    seen: dict[str, int] = {}

    def loss(task: UnitTask) -> float:
        seen[task.name] = seen.get(task.name, -1) + 1
        return values[min(seen[task.name], len(values) - 1)]

    monkeypatch.setattr(UnitTask, "loss", loss)


def finished(images: Tensor, settings: Settings, on_block: Callable[[BlockReport], None] = print) -> Reconstruction:
    net = network()
    config = BitConfig.uniform(net.table.names, Precision(3))
    return reconstruct(net, images, config, settings, on_block=on_block)


def codes(layers: QuantizedLayers) -> Tensor:
    return torch.cat([weight.codes.flatten() for weight in layers.weights.values()])


def test_a_start_that_is_no_number_is_put_back_to_plain_rounding(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    plain = plainly_rounded(net, (images,), BitConfig.uniform(net.table.names, Precision(3)))
    losses(monkeypatch, 1.0, math.nan, 0.5)  # nothing that comes after is known to be better
    found = finished(images, Settings(steps=20, basis="given"))
    assert {report.outcome for report in found.reports} == {"nearest"}
    assert all(report.loss_after == report.loss_before == 1.0 for report in found.reports)
    assert torch.equal(codes(found.layers), codes(plain))


def test_a_cycle_that_ends_in_no_number_is_dropped(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    losses(monkeypatch, 1.0, 0.5, math.nan)
    found = finished(images, Settings(steps=40))
    assert {report.outcome for report in found.reports} == {"reconstructed"}
    assert {report.loss_after for report in found.reports} == {0.5}
    losses(monkeypatch, 1.0, 0.5)
    assert torch.equal(codes(found.layers), codes(finished(images, Settings(steps=0)).layers))  # the start was kept


def test_a_resumed_reconstruction_fits_weights_to_float_inputs_first(images: Tensor, tmp_path: Path) -> None:
    """Units that come from disk bring the quantizers of their inputs; these may not act before all weights are done."""
    net = network()
    config = BitConfig.uniform(net.table.names, Precision(3, 3))
    settings = Settings(steps=30, batch=8, order="weights first", early_stopping=False)
    whole = reconstruct(net, images, config, settings)

    def stop(report: BlockReport) -> None:
        if report.block == whole.reports[1].block:
            raise KeyboardInterrupt

    progress = Progress(tmp_path / "partial", "key")
    with pytest.raises(KeyboardInterrupt):
        reconstruct(net, images, config, settings, progress=progress, on_block=stop)
    resumed = reconstruct(net, images, config, settings, progress=Progress(tmp_path / "partial", "key"))
    assert torch.equal(codes(resumed.layers), codes(whole.layers))
    assert resumed.layers.inputs == whole.layers.inputs
    for name, bias in whole.layers.biases.items():
        assert torch.equal(resumed.layers.biases[name], bias)
    # and once more, with all units on disk
    again = reconstruct(net, images, config, settings, progress=Progress(tmp_path / "partial", "key"))
    assert again.layers.inputs == whole.layers.inputs
