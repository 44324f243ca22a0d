"""A precision-scalable systolic accelerator with double-buffered memories.

Units do `f` multiply-accumulates a cycle at a precision: in Bit Fusion (Sharma et al., ISCA 2018, section III) a unit
of 16 two-bit bricks fuses them to f = (8/w)·(8/a) products of w × a bits; a bit-serial unit (BISMO, Umuroglu et al.,
FPL 2018) takes w·a cycles, f = 1/(w·a). With R rows and C columns, a tile of P output positions, n output channels and
k input channels takes, by dataflow,

    channels            ⌈P/positions⌉ · ⌈n/C⌉ · taps·⌈k/(R·f)⌉     Bit Fusion; one cycle for each vector of channels
    output-stationary   ⌈P/R⌉ · ⌈n/C⌉ · (2R + C − 2 + ⌈k·taps/f⌉)  SCALE-Sim (Samajdar et al., ISPASS 2020, eq. 1-3)
    weight-stationary   (2R + C − 2 + P) · ⌈n/C⌉ · ⌈k·taps/(R·f)⌉   the same

cycles (f ≥ 1; otherwise ⌈·⌉ counts f = 1 and the cycles are multiplied by 1/f). In the dataflow `channels`, layers with
at most `gather_channels` input channels a group lay their taps along the rows too (Bit Fusion's im2col).

Groups run one after another. Outputs are cut into tiles of rows of one image, or of whole images; tiles are visited
with input channels innermost, so that partial sums never leave the chip. Half of each buffer is filled while the other
works; an operand is fetched when its tile is not in that half, which forgets what was longest unused: tiles stay that
the loops come back to if all of them fit together. With T bits moved in all, F of them before the first tile can start
and S after the last has ended, and B bits a cycle,

    cycles = max(compute, ⌈(T − F − S)/B⌉) + ⌈F/B⌉ + ⌈S/B⌉ + tiles·tile_overhead

(transfers hide behind arithmetic, as in Bit Fusion's own simulator). All tilings by powers of two and both loop orders
are tried; latency is that of the fastest, and the energy's traffic is the least of any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.breakdown import DeviceCosts, Floats
from hwmodel.device import DeviceSpec
from hwmodel.errors import InputError
from hwmodel.layer import LayerTable
from hwmodel.precision import Precision
from hwmodel.shapes import Ints, Shapes


@dataclass(frozen=True, slots=True)
class Tiles:
    """T candidate tilings of each layer, arrays (L, T): images, output rows, output and input channels of a tile."""

    images: Ints
    rows: Ints
    out_channels: Ints
    in_channels: Ints
    channels_outer: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the candidates cost for one group, arrays (L, C, T): cycles, and bits to and from main memory."""

    compute: Floats
    tiles: Floats
    total_bits: Floats
    first_bits: Floats
    last_bits: Floats
    fits: NDArray[np.bool_]


def systolic_costs(table: LayerTable, precisions: Sequence[Precision], device: DeviceSpec) -> DeviceCosts:
    """Latency and energy per image of L layers at C precisions that the device runs; the module says how."""
    shapes = Shapes.of(table)
    plan = schedule(shapes, tilings(shapes, device), precisions, device)
    bits_per_cycle = device["memory_bandwidth"] * 8 / device["frequency"]
    groups = shapes.groups[:, None, None]
    compute, tiles = plan.compute * groups, plan.tiles * groups
    total = plan.total_bits * groups
    transfer = np.ceil((total - plan.first_bits - plan.last_bits) / bits_per_cycle)
    edges = np.ceil(plan.first_bits / bits_per_cycle) + np.ceil(plan.last_bits / bits_per_cycle)
    starts = tiles * device["tile_overhead"]
    cycles = np.where(plan.fits, np.maximum(compute, transfer) + edges + starts, np.inf)
    least = cycles.min(axis=-1)
    if not np.isfinite(least).all():
        name = table.names[int(np.argwhere(~np.isfinite(least))[0][0])]
        raise InputError(f"device {device.name}: no tile of {name} fits its buffers; enlarge them in the device file")
    best = np.where(cycles == least[..., None], total, np.inf).argmin(axis=-1)[..., None]

    def chosen(array: Floats) -> Floats:
        return np.take_along_axis(array, best, -1)[..., 0]

    used = (shapes.macs > 0)[:, None] * shapes.uses[:, None] / device.batch
    to_s = used / device["frequency"]
    busy, waits = chosen(compute), chosen(np.maximum(transfer - compute, 0) + edges)
    moved, first = chosen(transfer), chosen(starts)
    overhead = first * to_s + used * device["layer_overhead"]
    least_bits = np.where(plan.fits, total, np.inf).min(axis=-1)
    binds = np.select([first > np.maximum(busy, moved), moved > busy], ["overhead", "memory"], "compute")
    return DeviceCosts(
        table.names,
        tuple(precisions),
        least * to_s + used * device["layer_overhead"],
        busy * to_s,
        waits * to_s,
        overhead,
        _energy(shapes, precisions, device, least_bits * used),
        chosen(total) * used / 8,
        binds,
    )


def tilings(shapes: Shapes, device: DeviceSpec) -> Tiles:
    """Every tile of one image's rows by powers of two, or of 2, 4, … whole images, times channels by powers of two."""
    heights = _powers(int(shapes.out_height.max(initial=1)))
    images = _powers(device.batch)
    spans = [(1, height) for height in heights] + [(count, heights[-1]) for count in images[1:]]
    outs = [int(device["columns"]) * power for power in _powers(int(shapes.out_channels.max(initial=1)))]
    ins = _powers(int(shapes.in_channels.max(initial=1)))
    grid = np.array([(*span, n, k, outer) for span in spans for n in outs for k in ins for outer in (0, 1)]).T
    at_most = (np.array([device.batch]), shapes.out_height, shapes.out_channels, shapes.in_channels)
    tile = [np.minimum(grid[i], np.maximum(limit, 1)[:, None]) for i, limit in enumerate(at_most)]
    shape = (len(shapes.groups), grid.shape[1])
    image, row, out, into = (np.broadcast_to(array, shape) for array in tile)
    return Tiles(image, row, out, into, np.broadcast_to(grid[4].astype(bool), shape))


def schedule(shapes: Shapes, tiles: Tiles, precisions: Sequence[Precision], device: DeviceSpec) -> Schedule:
    """The module's equations for every layer (L), precision (C) and tiling (T)."""
    w = np.array([p.w for p in precisions], np.int64)[:, None]
    a = np.array([p.a for p in precisions], np.int64)[:, None]
    rate = np.array([device.kernels[p].value for p in precisions])[:, None]

    def layer(values: Ints) -> Ints:
        return values[:, None, None]

    b, r, n, k = (array[:, None, :] for array in (tiles.images, tiles.rows, tiles.out_channels, tiles.in_channels))
    outer = tiles.channels_outer[:, None, :]
    height, width, taps = layer(shapes.out_height), layer(shapes.out_width), layer(shapes.taps)
    images, rows = _cut(np.array(device.batch), b), _cut(height, r)
    outs, ins = _cut(layer(shapes.out_channels), n), _cut(layer(shapes.in_channels), k)

    def positions(count: Ints, high: Ints) -> Floats:
        return _position_cycles((count * high * width).astype(float), device)

    nothing = np.zeros(())
    along = sum((many * often * positions(count, high) for many, count in images for often, high in rows), nothing)
    across = sum((often * np.ceil(c / device["columns"]) for often, c in outs), nothing)
    gather = layer(shapes.in_channels) <= device["gather_channels"]
    deep = sum((often * _reduction_cycles(c, taps, gather, rate, device) for often, c in ins), nothing)

    def reached(high: Ints) -> Ints:
        spanned = (high - 1) * layer(shapes.stride) + layer(shapes.reach)
        return np.where(high > 0, np.minimum(spanned, layer(shapes.in_height)), 0)

    in_row = layer(shapes.in_width) * a
    all_in = layer(shapes.in_channels)
    spans = [(many * often, count * reached(high) * in_row * all_in) for many, count in images for often, high in rows]
    bands = [(often, count * all_in * taps * w) for often, count in outs]
    n_spans = _count(images) * _count(rows)
    n_outs, n_ins = _count(outs), _count(ins)
    tile_in = b * k * reached(r) * in_row
    tile_w = n * k * taps * w
    holds_in, holds_w = device["input_buffer"] * 4, device["weight_buffer"] * 4
    input_bits = sum((often * bits for often, bits in spans), nothing)
    weight_bits = sum((often * bits for often, bits in bands), nothing)
    inputs = np.where(
        outer,
        input_bits * np.where(input_bits <= holds_in, 1, n_outs),
        sum((often * bits * np.where(bits <= holds_in, 1, n_outs) for often, bits in spans), nothing),
    )
    weights = np.where(
        outer,
        sum((often * bits * np.where(bits <= holds_w, 1, n_spans) for often, bits in bands), nothing),
        weight_bits * np.where(weight_bits <= holds_w, 1, n_spans),
    )
    out_positions = device.batch * height * width
    stored = device["output_bits"]
    read_first = device["partial_reads"] * stored
    total = inputs + weights + out_positions * layer(shapes.out_channels) * (stored + read_first)

    tile_out = b * r * width * n
    last_out = images[1][1] * rows[1][1] * width * outs[1][1]
    fits = (
        (tile_in <= holds_in)
        & (tile_w <= holds_w)
        & (tile_out * device["accumulator_bits"] <= device["output_buffer"] * 4)
    )
    return Schedule(
        along * across * deep,
        n_spans * n_outs * n_ins * np.ones_like(total),
        total,
        tile_in + tile_w + tile_out * read_first,
        last_out * stored * np.ones_like(total),
        fits,
    )


def _position_cycles(positions: Floats, device: DeviceSpec) -> Floats:
    rows, columns = device["rows"], device["columns"]
    match device.dataflow:
        case "channels":
            return np.ceil(positions / device["positions"])
        case "output-stationary":
            return np.ceil(positions / rows)
        case _:
            return np.where(positions > 0, 2 * rows + columns - 2 + positions, 0)


def _reduction_cycles(
    channels: Ints, taps: Ints, gather: NDArray[np.bool_], rate: Floats, device: DeviceSpec
) -> Floats:
    rows, columns = device["rows"], device["columns"]
    fused, serial = np.maximum(np.rint(rate), 1), np.maximum(np.rint(1 / rate), 1)
    terms = channels * taps
    match device.dataflow:
        case "channels":
            lanes = rows * fused
            return serial * np.where(gather, np.ceil(terms / lanes), taps * np.ceil(channels / lanes))
        case "output-stationary":
            return np.where(terms > 0, 2 * rows + columns - 2 + serial * np.ceil(terms / fused), 0)
        case _:
            return serial * np.ceil(terms / (rows * fused))


def _energy(shapes: Shapes, precisions: Sequence[Precision], device: DeviceSpec, memory_bits: Floats) -> Floats | None:
    """Joules per image: units while they work, on-chip reads, partial sums, and main memory.

    An input is read once for all columns that use it, a weight once per multiply-accumulate, a partial sum read and
    written once per pass of the reduction over the rows.
    """
    keys = ("unit_energy", "weight_buffer_energy", "input_buffer_energy", "output_buffer_energy", "memory_energy")
    unit, weight, into, out, memory = (device[key] for key in keys)
    if not any((unit, weight, into, out, memory)):
        return None
    w = np.array([p.w for p in precisions])
    a = np.array([p.a for p in precisions])
    rate = np.array([device.kernels[p].value for p in precisions])
    macs = (shapes.macs * shapes.uses)[:, None].astype(float)
    shared = np.minimum(shapes.out_channels, device["columns"])[:, None]
    outputs = shapes.groups * shapes.out_channels * shapes.out_height * shapes.out_width * shapes.uses
    passes = np.ceil((shapes.in_channels * shapes.taps)[:, None] / (device["rows"] * np.maximum(rate, 1)))
    sums = 2 * outputs[:, None] * passes * device["accumulator_bits"]
    joules: Floats = macs * (unit / rate + weight * w + into * a / shared) + sums * out + memory_bits * memory
    return joules


def _powers(limit: int) -> list[int]:
    """1, 2, 4, … up to the first that is at least `limit`."""
    return [1 << i for i in range(max(limit - 1, 0).bit_length() + 1)]


def _cut(size: Ints, tile: Ints) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints]]:
    """(how many, how large) of the full tiles and of the last, which may be smaller, that `size` is cut into."""
    count = -(-size // tile)
    return (np.maximum(count - 1, 0), tile), (np.minimum(count, 1), size - np.maximum(count - 1, 0) * tile)


def _count(cut: tuple[tuple[Ints, Ints], tuple[Ints, Ints]]) -> Ints:
    return cut[0][0] + cut[1][0]
