"""The commands about layers and devices: what layers are and cost, which devices there are, and measuring this one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwmodel import InputError
from mpsearch.cli.arguments import Json, Wait, takes
from mpsearch.cli.common import console, emit_json, hold_file
from mpsearch.request.options import ModelOptions

if TYPE_CHECKING:
    from hwmodel.lookup import LookupTable
    from mpsearch.show.console import Console


@takes(ModelOptions)
def layers(
    options: ModelOptions,
    device: Annotated[
        str | None, typer.Option(help="A device's name, its TOML, or a lookup table (.csv, .json).")
    ] = None,
    as_json: Json = False,
) -> None:
    """The layer table: shapes, MACs, weights, blocks, and what is not quantized; with a device, what layers cost."""
    from hwmodel.device import load_device
    from hwmodel.latency import device_costs
    from mpsearch.run.loaded import captured_alone
    from mpsearch.show import tables
    from recon.graph.beside import operations_beside

    terminal = console()
    spec = None if device is None else load_device(device)
    network = captured_alone(options, terminal)[1]
    table = network.table
    if as_json:
        emit_json(table.to_json())
        return
    if spec is not None:
        if said := tables.not_counted(operations_beside(network.module)):
            terminal.note(said)
        for part in tables.cost_rows(device_costs(table, spec.precisions, spec)):
            terminal.out.print(part)
        if spec.table is not None and (missing := spec.table.missing(table, spec.precisions)):
            terminal.out.print(tables.missing_rows(missing))
        return
    for view in tables.layer_rows(table):
        terminal.out.print(view)


def devices(name: Annotated[str | None, typer.Argument(help="A device's name or file.")] = None) -> None:
    """Lists the device models that come along; with a name, every number with its unit and source."""
    from hwmodel.device import list_devices, load_device
    from mpsearch.show import tables

    if name is None:
        console().out.print(tables.devices_rows([load_device(known) for known in list_devices()]))
        return
    for part in tables.device_rows(load_device(name)):
        console().out.print(part, markup=False)


@takes(ModelOptions)
def profile(
    options: ModelOptions,
    out: Annotated[Path, typer.Option(help="The lookup table to write: .csv or .json.")],
    runtime: Annotated[str, typer.Option(help="What runs the layers: onnxruntime.")] = "onnxruntime",
    rounds: Annotated[int, typer.Option(help="Runs that are counted.")] = 30,
    wait: Wait = False,
) -> None:
    """Measures every distinct layer shape in a runtime on this machine: a lookup table for --device. It has one thread
    unless --threads says more."""
    from mpsearch.hardware.profile import profile_layers
    from mpsearch.run.loaded import captured_alone

    if runtime != "onnxruntime":
        raise InputError(f"--runtime must be onnxruntime, got {runtime!r}")
    _check_table_path(out)
    hold_file(out, wait)
    terminal = console()
    table = captured_alone(options, terminal)[1].table
    partial = out.with_suffix(".partial.json")
    found = profile_layers(table, threads=options.threads or 1, rounds=rounds, report=terminal.note, partial=partial)
    _write_table(found, out, terminal)


@takes(ModelOptions)
def import_haq(
    options: ModelOptions,
    table: Annotated[Path, typer.Argument(help="A lookup table in HAQ's layout, .npy, (layers, 8, 8).")],
    unit: Annotated[str, typer.Option(help="What one unit of its numbers is, the file does not say: 1ms.")],
    out: Annotated[Path, typer.Option(help="The lookup table to write: .csv or .json.")],
    batch: Annotated[int, typer.Option(help="Images that its costs are for.")] = 16,
    wait: Wait = False,
) -> None:
    """Turns a latency table of HAQ (github.com/mit-han-lab/haq) into a lookup table for --device."""
    from hwmodel.lookup import import_haq as imported
    from hwmodel.lookup import read_haq
    from mpsearch.request.units import parse_duration
    from mpsearch.run.loaded import captured_alone

    _check_table_path(out)
    hold_file(out, wait)
    seconds, costs = parse_duration(unit), read_haq(table)
    terminal = console()
    model, network = captured_alone(options, terminal)
    order = {name: index for index, (name, _) in enumerate(model.model.named_modules())}
    found = network.table
    in_order = replace(found, layers=tuple(sorted(found, key=lambda layer: order[layer.name])))
    source = f"HAQ table {table.name}, a batch of {batch}, unit {unit}"
    _write_table(imported(costs, in_order, seconds, batch, source), out, terminal)


def _check_table_path(out: Path) -> None:
    if out.suffix not in (".csv", ".json"):
        raise InputError(f"--out must be a .csv or .json file, got {out}")


def _write_table(found: LookupTable, out: Path, terminal: Console) -> None:
    from hwmodel.lookup import write_lookup

    write_lookup(found, out)
    terminal.note(f"the table is in {out}; see it with: mpsearch layers --device {out}")
