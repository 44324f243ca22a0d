"""What holds for every device: parts add up, fewer bits never cost more, odd shapes are costed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from layers import EVERY, conv, linear, some_layers

from hwmodel.cost import CostTable
from hwmodel.device import list_devices, load_device
from hwmodel.errors import InputError, MpsearchError
from hwmodel.latency import device_costs, with_device
from hwmodel.layer import LayerTable
from hwmodel.precision import Precision


@pytest.mark.parametrize("name", list_devices())
def test_parts_add_up_and_every_kind_of_layer_is_costed(name: str) -> None:
    device = load_device(name)
    costs = device_costs(EVERY, device.precisions, device)
    assert (costs.latency_s > 0).all()
    assert (costs.memory_bytes > 0).all()
    np.testing.assert_allclose(costs.compute_s + costs.memory_s + costs.overhead_s, costs.latency_s, rtol=1e-9)
    assert set(costs.binds.ravel()) <= {"compute", "memory", "overhead"}
    records = list(costs.records())
    assert len(records) == len(EVERY) * len(device.precisions)
    assert records[0].layer == EVERY[0].name
    assert sum(record.latency_s for record in records) == pytest.approx(costs.latency_s.sum())


def test_parts_that_do_not_add_up_raise() -> None:
    costs = device_costs(EVERY, [Precision(8, 8)], load_device("mpic"))
    with pytest.raises(MpsearchError, match="do not add up"):
        replace(costs, compute_s=costs.compute_s * 1.001)
    with pytest.raises(MpsearchError, match="shape"):
        replace(costs, compute_s=costs.compute_s[:1])


@pytest.mark.parametrize("name", list_devices())
@pytest.mark.parametrize("seed", range(3))
def test_fewer_bits_never_cost_more(name: str, seed: int) -> None:
    device = load_device(name)
    table = LayerTable("both", (3, 32, 32), (*EVERY, *some_layers(30, seed)))
    costs = device_costs(table, device.precisions, device)
    for i, few in enumerate(device.precisions):
        for j, more in enumerate(device.precisions):
            if few.w <= more.w and few.a <= more.a:
                assert (costs.latency_s[:, i] <= costs.latency_s[:, j] * (1 + 1e-12)).all(), (few, more)
                if costs.energy_j is not None:
                    assert (costs.energy_j[:, i] <= costs.energy_j[:, j] * (1 + 1e-12)).all(), (few, more)


@pytest.mark.parametrize("name", list_devices())
def test_empty_maps_cost_nothing_and_uses_multiply(name: str) -> None:
    device = load_device(name)
    once, thrice = conv("once", 16, 16), conv("thrice", 16, 16, uses=3)
    table = LayerTable("t", (3, 8, 8), (once, thrice, conv("empty", 16, 16, side=(0, 8)), linear("none", 8, 8, 0)))
    latency = device_costs(table, device.precisions, device).latency_s
    np.testing.assert_allclose(latency[1], 3 * latency[0])
    assert (latency[2:] == 0).all()


@pytest.mark.parametrize("name", list_devices())
def test_larger_layers_take_longer(name: str) -> None:
    device = load_device(name)
    layers = tuple(conv(f"c{n}", n, n, side=(28, 28)) for n in (16, 32, 64, 128, 256))
    latency = device_costs(LayerTable("t", (3, 8, 8), layers), device.precisions, device).latency_s
    assert (np.diff(latency, axis=0) > 0).all()


def test_float_activations_run_at_the_default_bits() -> None:
    device = load_device("mpic")
    weight_only = device_costs(EVERY, [Precision(4), Precision(2)], device)
    integer = device_costs(EVERY, [Precision(4, 8), Precision(2, 8)], device)
    np.testing.assert_array_equal(weight_only.latency_s, integer.latency_s)
    assert weight_only.precisions == (Precision(4), Precision(2))
    four = replace(device, activation_bits_default=4)
    assert device_costs(EVERY, [Precision(4)], four).latency_s.sum() < weight_only.latency_s[:, 0].sum()


def test_precisions_that_the_device_does_not_run_are_named() -> None:
    device = load_device("npu-int4")
    assert not device.supports(Precision(3, 8))
    assert device.supports(Precision(4))
    with pytest.raises(InputError, match=r"npu-int4 does not run W3A8, W2A32; it runs W4A4, W4A8, W8A8"):
        device_costs(EVERY, [Precision(3, 8), Precision(2), Precision(8, 8)], device)


def test_batches_share_weights() -> None:
    device = load_device("bitfusion")
    table = LayerTable("t", (3, 8, 8), (linear("fc", 4096, 4096),))
    alone = device_costs(table, [Precision(8, 8)], replace(device, batch=1)).latency_s
    assert alone[0, 0] > 8 * device_costs(table, [Precision(8, 8)], device).latency_s[0, 0]


def test_cost_table_gets_latency_and_energy() -> None:
    precisions = (Precision(8, 8), Precision(4, 8))
    zeros = np.zeros((len(EVERY), 2))
    costs = CostTable(EVERY.names, precisions, zeros.astype(int), zeros.astype(int), zeros, 0)
    found = with_device(costs, EVERY, load_device("bitfusion"))
    assert found.latency_s is not None
    assert found.latency_s.shape == zeros.shape
    assert found.energy_j is not None
    assert (found.energy_j > 0).all()
    assert with_device(costs, EVERY, load_device("mpic")).energy_j is None
