"""Ranges of inputs by what the unit makes of them: against every range, and where only a part of the values matters."""

from __future__ import annotations

import math

import torch
from captured import of_images
from torch import Tensor, nn

from recon.compute.store import Store
from recon.fit.ranges import STEP, fit_ranges
from recon.fit.task import walk
from recon.quantizers.insert import find_ranges, quantize_inputs, quantizer_of
from recon.settings import Settings
from recon.statistics.fisher import Fisher


def test_a_range_is_as_wide_as_the_output_wants_it() -> None:
    torch.manual_seed(0)
    network = of_images(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Hardtanh(0.0, 1.0)), (3, 6, 6))
    layer = network.layer("0")
    layer.weight.data = torch.eye(3).view(3, 3, 1, 1)
    images = 2 * torch.randn(64, 3, 6, 6).abs()  # up to 8, of which nothing above 1 is seen
    work = quantize_inputs(network, {"0": 3})
    store = Store(2**30, torch.device("cpu"))
    with torch.no_grad():
        (task,) = walk(work, network, [images], Settings(), Fisher(), store)
        quantizer = quantizer_of(task.layers["0"])
        assert quantizer is not None
        pick = task.taught

        def error(log_scale: float) -> float:
            quantizer.log_scale.data.fill_(log_scale)
            return float(task.error(pick))

        find_ranges(task.module, task.layers, task.x)
        start = float(quantizer.log_scale)
        least = min(error(start + step * STEP / 4) for step in range(-120, 40))
        fit_ranges(task)
        found = float(quantizer.log_scale)
        assert 7 * math.exp(found) < 2 < 7 * math.exp(start)
        assert error(found) < min(0.1 * error(start), 1.1 * least)


def test_large_maps_teach_by_fewer_images() -> None:
    def count(size: int, early_stopping: bool, most: int) -> int:
        network = of_images(nn.Sequential(nn.Conv2d(1, 1, 1)), (1, size, size))
        images = torch.zeros(64, 1, size, size)
        store = Store(2**30, torch.device("cpu"))
        (task,) = walk(network, network, [images], Settings(early_stopping=early_stopping), Fisher(), store)
        picked: Tensor = task.draw(most)
        return len(picked)

    assert [count(size, True, 32) for size in (8, 32, 64, 96)] == [32, 32, 8, 8]
    assert count(96, False, 32) == 32  # a recipe as it was published
    assert count(96, True, 4) == 4


def test_a_channel_in_the_dip_of_silu_is_worth_a_finer_step_than_the_squared_error_says() -> None:
    torch.manual_seed(0)
    network = of_images(nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), (2, 6, 6)).with_one_step()
    layer = network.layer("0")
    layer.weight.data = torch.tensor([0.01, 20.0]).view(2, 1, 1, 1)
    images = torch.stack([30 * torch.randn(64, 6, 6).abs(), -0.28 * torch.rand(64, 6, 6)], 1)
    work = quantize_inputs(network, {"0": 8})
    store = Store(2**30, torch.device("cpu"))
    with torch.no_grad():
        (task,) = walk(work, network, [images], Settings(), Fisher(), store)
        quantizer = quantizer_of(task.layers["0"])
        assert quantizer is not None
        find_ranges(task.module, task.layers, task.x)
        start, before = quantizer.freeze(), float(task.error(task.taught))
        fit_ranges(task)
        found, after = quantizer.freeze(), float(task.error(task.taught))
    assert 0 < start.zero_point < 16
    assert found.scale < start.scale / 2
    assert found.scale * found.zero_point > 0.2  # the dip is still in the range
    assert after < 0.1 * before
