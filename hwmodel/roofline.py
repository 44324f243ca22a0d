"""Processors that run tuned kernels: CPUs, microcontrollers, tensor cores.

A roofline (Williams et al., CACM 2009) with what kernels add to it. For one image of a layer,

    compute  = macs'/(v·d)/frequency + inputs·pack_cycles/frequency
    memory   = (w·weights + a·inputs + output_bits·outputs)/8/bandwidth
    latency  = max(compute, memory) + layer_overhead

with v the multiply-accumulates per cycle of the kernel at this precision (unpacking included), d the depthwise rate for
depthwise layers, 1 otherwise, and macs' the multiply-accumulates after positions and channels are rounded up to the
kernel's tile. `batch` images share weights, overhead and tiles. The energy is power · latency.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwmodel.breakdown import DeviceCosts
from hwmodel.device import DeviceSpec
from hwmodel.layer import LayerTable
from hwmodel.precision import Precision
from hwmodel.shapes import Shapes


def roofline_costs(table: LayerTable, precisions: Sequence[Precision], device: DeviceSpec) -> DeviceCosts:
    """Latency and energy per image of L layers at C precisions that the device runs; the module says how."""
    s = Shapes.of(table)
    w = np.array([p.w for p in precisions])
    a = np.array([p.a for p in precisions])
    rate = np.array([device.kernels[p].value for p in precisions])
    positions = _round_up(device.batch * s.out_height * s.out_width, device["tile_positions"])
    channels = _round_up(s.out_channels, device["tile_channels"])
    macs = (s.groups * channels * s.in_channels * s.taps * positions)[:, None]
    share = np.where(s.depthwise, device["depthwise_rate"], 1.0)[:, None]
    inputs = (device.batch * s.groups * s.in_channels * s.in_height * s.in_width)[:, None]
    outputs = (device.batch * s.groups * s.out_channels * s.out_height * s.out_width)[:, None]
    weights = (s.groups * s.out_channels * s.in_channels * s.taps)[:, None]
    busy = macs / (rate * share) / device["frequency"] + inputs * device["pack_cycles"] / device["frequency"]
    moved = (w * weights + a * inputs + device["output_bits"] * outputs) / 8
    transfer = moved / device["memory_bandwidth"]
    used = (s.macs > 0)[:, None] * s.uses[:, None] / device.batch
    overhead = np.broadcast_to(used * device["layer_overhead"], busy.shape)
    latency = np.maximum(busy, transfer) * used + overhead
    starts = device["layer_overhead"]
    binds = np.select([starts > np.maximum(busy, transfer), transfer > busy], ["overhead", "memory"], "compute")
    return DeviceCosts(
        table.names,
        tuple(precisions),
        latency,
        busy * used,
        np.maximum(transfer - busy, 0) * used,
        overhead,
        latency * device["power"] if device["power"] else None,
        moved * used,
        binds,
    )


def _round_up(count: np.typing.NDArray[np.int64], tile: float) -> np.typing.NDArray[np.int64]:
    return -(-count // int(tile)) * int(tile)
