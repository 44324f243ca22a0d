"""The systolic model against a plain loop that walks the tiles, holds buffers, and counts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from layers import EVERY, conv, some_layers

from hwmodel.device import DATAFLOWS, DeviceSpec, Quantity, load_device
from hwmodel.errors import InputError
from hwmodel.layer import LayerSpec, LayerTable
from hwmodel.precision import Precision
from hwmodel.shapes import Shapes
from hwmodel.systolic import schedule, systolic_costs, tilings


def with_numbers(device: DeviceSpec, **values: float) -> DeviceSpec:
    numbers = {key: Quantity(value, device.numbers[key].unit, "test") for key, value in values.items()}
    return replace(device, numbers={**device.numbers, **numbers})


class Buffer:
    """Half of an on-chip buffer that forgets what was longest unused."""

    def __init__(self, bits: float) -> None:
        self.capacity = bits
        self.tiles: dict[tuple[int, ...], int] = {}

    def need(self, key: tuple[int, ...], bits: int) -> int:
        """Bits to fetch so that the tile is there."""
        fetched = 0 if key in self.tiles else bits
        self.tiles.pop(key, None)
        while sum(self.tiles.values()) + bits > self.capacity:
            self.tiles.pop(next(iter(self.tiles)))
        self.tiles[key] = bits
        return fetched


def parts(size: int, tile: int) -> list[int]:
    return [min(tile, size - start) for start in range(0, size, tile)]


def tile_cycles(device: DeviceSpec, layer: LayerSpec, f: float, positions: int, n: int, k: int) -> int:
    rows, columns = int(device["rows"]), int(device["columns"])
    fused, serial = max(round(f), 1), max(round(1 / f), 1)
    taps = layer.kernel[0] * layer.kernel[1]
    across = math.ceil(n / columns)
    if device.dataflow == "output-stationary":
        per_fold = 2 * rows + columns - 2 + serial * math.ceil(k * taps / fused)
        return math.ceil(positions / rows) * across * per_fold
    if device.dataflow == "weight-stationary":
        return (2 * rows + columns - 2 + positions) * across * serial * math.ceil(k * taps / (rows * fused))
    gathered = layer.in_channels // layer.groups <= device["gather_channels"]
    lanes = rows * fused
    passes = math.ceil(k * taps / lanes) if gathered else taps * math.ceil(k / lanes)
    return math.ceil(positions / device["positions"]) * across * passes * serial


def walk(
    device: DeviceSpec, layer: LayerSpec, precision: Precision, tiling: tuple[int, ...]
) -> tuple[float, int] | None:
    """(cycles, bits moved) of one layer and tiling; None where a tile does not fit its half buffer."""
    b, r, n, k, channels_outer = tiling
    f = device.kernels[precision].value
    ic, oc = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    (height, width), reach = layer.out_size, (layer.kernel[0] - 1) * layer.dilation[0] + 1
    taps, stored = layer.kernel[0] * layer.kernel[1], int(device["output_bits"])
    partial = int(device["partial_reads"])
    spans = [(images, rows) for images in parts(device.batch, b) for rows in parts(height, r)]
    outs, ins = parts(oc, n), parts(ic, k)
    outer = [(m, c) for m in range(len(spans)) for c in range(len(outs))]
    if channels_outer:
        outer = [(m, c) for c in range(len(outs)) for m in range(len(spans))]

    def in_bits(m: int, i: int) -> int:
        rows = min((spans[m][1] - 1) * layer.stride[0] + reach, layer.in_size[0])
        return spans[m][0] * rows * layer.in_size[1] * ins[i] * precision.a

    compute = moved = steps = first = last = 0
    for group in range(layer.groups):
        inputs = Buffer(device["input_buffer"] * 8 / 2)
        weights = Buffer(device["weight_buffer"] * 8 / 2)
        for m, c in outer:
            outputs = spans[m][0] * spans[m][1] * width * outs[c]
            if outputs * device["accumulator_bits"] > device["output_buffer"] * 8 / 2:
                return None
            for i in range(len(ins)):
                tile_in, tile_w = in_bits(m, i), outs[c] * ins[i] * taps * precision.w
                if tile_in > inputs.capacity or tile_w > weights.capacity:
                    return None
                load = inputs.need((m, i), tile_in) + weights.need((c, i), tile_w)
                if i == 0:
                    load += outputs * partial * stored
                if group == m == c == i == 0:
                    first = load
                moved += load
                compute += tile_cycles(device, layer, f, spans[m][0] * spans[m][1] * width, outs[c], ins[i])
                steps += 1
            moved += outputs * stored
            last = outputs * stored
    per_cycle = device["memory_bandwidth"] * 8 / device["frequency"]
    middle = math.ceil((moved - first - last) / per_cycle)
    edges = math.ceil(first / per_cycle) + math.ceil(last / per_cycle)
    return max(compute, middle) + edges + steps * device["tile_overhead"], moved


DEVICES = {
    "bitfusion": load_device("bitfusion"),
    "tight": with_numbers(
        load_device("bitfusion"), weight_buffer=2048, input_buffer=4096, output_buffer=8192, tile_overhead=7
    ),
    "zynq": with_numbers(load_device("zynq-7020"), input_buffer=4096, weight_buffer=4096, memory_bandwidth=1.6e9),
    "npu": with_numbers(load_device("npu-int4"), input_buffer=8192, weight_buffer=8192, memory_bandwidth=8e9),
}


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_every_tiling_costs_exactly_what_the_plain_loop_counts(name: str, dataflow: str) -> None:
    device = replace(DEVICES[name], dataflow=dataflow, batch=3)
    table = LayerTable("t", (3, 8, 8), (*some_layers(5, 1), conv("dw", 6, 6, side=(7, 5), groups=6)))
    precisions = device.precisions[:: max(len(device.precisions) // 4, 1)]
    shapes = Shapes.of(table)
    tiles = tilings(shapes, device)
    plan = schedule(shapes, tiles, precisions, device)
    per_cycle = device["memory_bandwidth"] * 8 / device["frequency"]
    rng = np.random.default_rng(0)
    checked = 0
    for i, layer in enumerate(table):
        for t in rng.choice(tiles.images.shape[1], 60, replace=False):
            tiling = (
                int(tiles.images[i, t]), int(tiles.rows[i, t]), int(tiles.out_channels[i, t]),
                int(tiles.in_channels[i, t]), int(tiles.channels_outer[i, t]),
            )  # fmt: skip
            for j, precision in enumerate(precisions):
                truth = walk(device, layer, precision, tiling)
                assert bool(plan.fits[i, j, t]) == (truth is not None)
                if truth is None:
                    continue
                cycles, moved = truth
                total = plan.total_bits[i, j, t] * layer.groups
                assert total == moved
                edge_bits = (plan.first_bits[i, j, t], plan.last_bits[i, j, t])
                middle = math.ceil((total - sum(edge_bits)) / per_cycle)
                ours = max(plan.compute[i, j, t] * layer.groups, middle) + sum(
                    math.ceil(bits / per_cycle) for bits in edge_bits
                )
                assert ours + plan.tiles[i, j, t] * layer.groups * device["tile_overhead"] == cycles
                checked += 1
    assert checked > 100


@pytest.mark.parametrize("name", DEVICES)
def test_latency_is_the_fastest_tiling_of_the_plain_loop(name: str) -> None:
    device = DEVICES[name]
    table = LayerTable("t", (3, 8, 8), some_layers(3, 5).layers)
    precisions = (device.precisions[0], device.precisions[-1])
    costs = systolic_costs(table, precisions, device)
    tiles = tilings(Shapes.of(table), device)
    for i, layer in enumerate(table):
        every = {tuple(int(a[i, t]) for a in (tiles.images, tiles.rows, tiles.out_channels, tiles.in_channels,
                       tiles.channels_outer)) for t in range(tiles.images.shape[1])}  # fmt: skip
        for j, precision in enumerate(precisions):
            found = [truth for tiling in every if (truth := walk(device, layer, precision, tiling))]
            fastest = min(cycles for cycles, _ in found)
            assert costs.latency_s[i, j] == pytest.approx(fastest / device["frequency"] / device.batch, rel=1e-12)


def test_a_layer_that_fits_no_buffer_is_named() -> None:
    device = with_numbers(load_device("bitfusion"), input_buffer=4)
    with pytest.raises(InputError, match=r"no tile of .* fits its buffers"):
        systolic_costs(EVERY, [Precision(8, 8)], device)


def test_bitfusion_kernels_are_fused_bricks() -> None:
    device = load_device("bitfusion")
    for precision, kernel in device.kernels.items():
        assert kernel.value == (8 / precision.w) * (8 / precision.a)


def test_bismo_peak_is_the_published_one() -> None:
    device = load_device("zynq-7020")
    binary_ops = 2 * device["rows"] * device["columns"] * device["positions"] * device["frequency"]
    assert binary_ops == pytest.approx(6.5e12, rel=0.01)
    for precision, kernel in device.kernels.items():
        assert kernel.value == pytest.approx(1 / (precision.w * precision.a))


def test_large_layers_reach_the_peak_of_the_array() -> None:
    device = with_numbers(load_device("bitfusion"), memory_bandwidth=1e15)
    table = LayerTable("t", (3, 8, 8), (conv("big", 512, 512, side=(32, 32)),))
    for precision in device.precisions:
        costs = systolic_costs(table, [precision], device)
        rate = table.macs / (costs.latency_s[0, 0] * device["frequency"])
        assert rate == pytest.approx(512 * device.kernels[precision].value, rel=0.01)
