"""Device models beside published figures: the table of docs/hardware.md.

    python benchmarks/bench_hardware.py

Writes benchmarks/results/bench_hardware.json and puts the table into the page. `published.py` holds the figures with
their sources. Nothing is measured here: the models give the same numbers on every machine.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import published as p
from pages import put

from hwmodel.breakdown import DeviceCosts
from hwmodel.device import DeviceSpec, Quantity, load_device
from hwmodel.latency import device_costs
from hwmodel.layer import LayerTable
from hwmodel.precision import Precision

W8A8, W4A4 = Precision(8, 8), Precision(4, 4)
PAGE, RESULT = ROOT / "docs" / "hardware.md", ROOT / "benchmarks" / "results" / "bench_hardware.json"


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: totals in `unit`, over `items` layers or networks, and Spearman's rank correlation over them."""

    device: str
    what: str
    unit: str
    published: float
    model: float
    items: int
    rank: float | None

    @property
    def error(self) -> float:
        """The model's total relative to the published one, less 1."""
        return self.model / self.published - 1


def row(device: str, what: str, unit: str, published: Sequence[float], model: Sequence[float]) -> Row:
    """Compares two lists of figures of the same layers or networks."""
    rank = float(spearmanr(published, model)[0]) if len(published) >= 4 else None
    return Row(device, what, unit, float(np.sum(published)), float(np.sum(model)), len(published), rank)


def with_numbers(device: DeviceSpec, source: str, **values: float) -> DeviceSpec:
    """The device with some of its numbers replaced."""
    changed = {key: Quantity(value, device.numbers[key].unit, source) for key, value in values.items()}
    return replace(device, numbers={**device.numbers, **changed})


def bitfusion() -> list[Row]:
    """Cycles, main memory traffic and energy of Bit Fusion's benchmarks."""
    device = load_device("bitfusion")
    rows, cycles, totals, traffic, energy = [], [], [], [], []
    for network, layers in p.BITFUSION.items():
        costs = [_alone(p.bitfusion_layers(network), i, layer[4], device) for i, layer in enumerate(layers)]
        found = [float(cost.latency_s.sum()) * device["frequency"] * device.batch for cost in costs]
        given = [float(layer[5]) for layer in layers]
        rows.append(row("bitfusion", network, "kcycles", _scaled(given, 1e-3), _scaled(found, 1e-3)))
        cycles += found
        totals += given
        counts = p.BITFUSION_COUNTS[network]
        moved = sum(float(cost.memory_bytes.sum()) for cost in costs) * device.batch
        joules = sum(float(cost.energy_j.sum()) for cost in costs if cost.energy_j is not None) * device.batch
        traffic.append((sum(counts[-2:]) / 8e6, moved / 1e6))
        energy.append((1e3 * sum(n * each for n, each in zip(counts, p.BITFUSION_JOULES, strict=True)), 1e3 * joules))
    rows.append(row("bitfusion", "all layers", "kcycles", _scaled(totals, 1e-3), _scaled(cycles, 1e-3)))
    rows.append(row("bitfusion", "main memory traffic, by network", "MB", *zip(*traffic, strict=True)))
    rows.append(row("bitfusion", "energy, by network", "mJ", *zip(*energy, strict=True)))
    return rows


def scale_sim() -> list[Row]:
    """Cycles of single layers on a 32 x 32 array, memory aside."""
    rows = []
    for dataflow, _, into, out, kernel, size, cycles in p.SCALE_SIM:
        array = with_numbers(
            load_device("npu-int4"), "not compared", memory_bandwidth=1e15, input_buffer=1e12, weight_buffer=1e12,
            output_buffer=1e12,
        )  # fmt: skip
        layer = p.square("layer", into, out, kernel, 0, out_size=size)
        costs = device_costs(LayerTable("t", ((3, 8, 8),), (layer,)), [W8A8], replace(array, dataflow=dataflow))
        what = f"SCALE-Sim, {dataflow}, {'GEMM' if kernel == 1 else f'convolution {kernel} × {kernel}'}"
        rows.append(row("npu-int4", what, "cycles", [cycles], [float(costs.compute_s[0, 0]) * array["frequency"]]))
    return rows


def t4() -> list[Row]:
    """Kernel times of HAWQ-V3's tuning logs, and the per-layer latencies that its integer program takes."""
    device = load_device("t4")
    rows = []
    for network, layers in (("ResNet-18", p.T4_RESNET18), ("ResNet-50", p.T4_RESNET50)):
        found = 1e6 * device.batch * device_costs(p.t4_layers(layers), [W4A4, W8A8], device).latency_s
        fitted = ", fitted to it" if network == "ResNet-18" else ""
        for i, bits in enumerate(("INT4", "INT8")):
            given = [layer[5 + i] for layer in layers]
            rows.append(row("t4", f"{network}'s kernels, {bits}{fitted}", "µs", given, found[:, i].tolist()))
    found = device_costs(p.t4_layers(p.HAWQ_ILP_LAYERS), [W4A4, W8A8], device).latency_s
    ratio = sum(p.HAWQ_ILP_INT8) / sum(p.HAWQ_ILP_INT4), found[:, 1].sum() / found[:, 0].sum()
    ranks = [spearmanr(found[:, i], given)[0] for i, given in enumerate((p.HAWQ_ILP_INT4, p.HAWQ_ILP_INT8))]
    speed = Row("t4", "ResNet-18 in HAWQ-V3, INT4 over INT8", "times faster", *ratio, len(found), float(min(ranks)))
    return [*rows, speed]


def processors() -> list[Row]:
    """Whole networks at 8 bits on a Cortex-M7 and on four Cortex-A53."""
    m7 = with_numbers(load_device("stm32h7"), "STM32H747I-DISCO", frequency=400e6)
    found = [
        1e3 * float(device_costs(p.mobilenet_v1(width, side, classes), [W8A8], m7).latency_s.sum())
        for width, side, classes, _ in p.STM32H7_MOBILENET_V1
    ]
    given = [ms for *_, ms in p.STM32H7_MOBILENET_V1]
    rows = [row("stm32h7", "MobileNetV1, six sizes, STM32Cube.AI's kernels", "ms", given, found)]
    worst = max(range(len(given)), key=lambda i: abs(found[i] / given[i] - 1))
    width, side, *_ = p.STM32H7_MOBILENET_V1[worst]
    rows.append(row("stm32h7", f"the worst of them, width {width:g} at {side}", "ms", [given[worst]], [found[worst]]))
    core = load_device("cortex-a53")
    kernels = {precision: replace(rate, value=4 * rate.value) for precision, rate in core.kernels.items()}
    four = with_numbers(
        replace(core, kernels=kernels), "four cores", frequency=1.4e9, pack_cycles=core["pack_cycles"] / 4
    )
    for table in (p.mobilenet_v1(1.0, 224, 1000), p.mobilenet_v2()):
        ms = 1e3 * float(device_costs(table, [W8A8], four).latency_s.sum())
        rows.append(row("cortex-a53", f"{table.model}, four cores, XNNPACK", "ms", [p.XNNPACK_A53[table.model]], [ms]))
    return rows


def rows() -> list[Row]:
    """Every comparison."""
    return [*bitfusion(), *scale_sim(), *t4(), *processors()]


def table(compared: Sequence[Row]) -> str:
    """The page's table."""
    lines = ["| device | against | published | model | error | rank correlation |", "|---|---|---|---|---|---|"]
    for r in compared:
        rank = "" if r.rank is None else f"{r.rank:.3f} over {r.items}"
        figures = f"{_figure(r.published)} {r.unit} | {_figure(r.model)} | {100 * r.error:+.1f} %"
        lines.append(f"| {r.device} | {r.what} | {figures} | {rank} |")
    return "\n".join(lines)


def _alone(layers: LayerTable, index: int, precision: Precision, device: DeviceSpec) -> DeviceCosts:
    return device_costs(replace(layers, layers=(layers[index],)), [precision], device)


def _scaled(values: Sequence[float], by: float) -> list[float]:
    return [value * by for value in values]


def _figure(value: float) -> str:
    digits = 3 - math.floor(math.log10(value))
    return f"{value:,.{max(digits, 0)}f}"


def main() -> None:
    compared = rows()
    print(table(compared))
    RESULT.write_text(json.dumps({"rows": [{**asdict(r), "error": r.error} for r in compared]}, indent=1) + "\n")
    put(PAGE, "bench_hardware", table(compared))


if __name__ == "__main__":
    main()
