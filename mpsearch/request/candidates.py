"""What every layer may have, and what that costs: the user's bits, rules and edges, as far as the device runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwmodel import CostTable, InputError, LayerTable, Precision
from hwmodel.device import DeviceSpec
from hwmodel.latency import with_device
from hwmodel.size import cost_table, input_bytes
from hwmodel.target import load_target
from mpsearch.request.edges import pinned_edges
from mpsearch.request.options import RunOptions
from mpsearch.request.rules import allowed_precisions, parse_rule
from mpsearch.sensitivity.table import SensitivityTable


@dataclass(frozen=True, slots=True)
class Candidates:
    """The precisions that a search chooses from.

    `offered` are those that were asked for and that the device runs, `pinned` the edge layers held at 8 bits, `allowed`
    what every layer may have.
    """

    offered: tuple[Precision, ...]
    pinned: tuple[str, ...]
    allowed: Mapping[str, tuple[Precision, ...]]

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """All that any layer may have, and all that is offered, ascending."""
        return tuple(sorted({*self.offered, *(p for precisions in self.allowed.values() for p in precisions)}))


def candidates(options: RunOptions, table: LayerTable, fixed_bytes: int, device: DeviceSpec | None) -> Candidates:
    """The candidates for the layers of `table`, whose file has `fixed_bytes` beside its layers.

    Raises InputError where nothing is left for a layer, or for all.
    """
    offered = _offered(options, device)
    pinned = _pinned(options, table, fixed_bytes, device)
    rules = [parse_rule(text) for text in options.fix]
    allowed = allowed_precisions(table.names, offered, pinned, options.edge, rules)
    if options.target is not None:
        load_target(options.target).require(sorted({p for precisions in allowed.values() for p in precisions}))
    for name, precisions in allowed.items() if device is not None else ():
        assert device is not None
        allowed[name] = tuple(precision for precision in precisions if precision.arithmetic in device.kernels)
        if not allowed[name]:
            refused, runs = ", ".join(map(str, precisions)), ", ".join(map(str, device.precisions))
            raise InputError(f"--fix {name}: device {device.name} does not run {refused}; it runs {runs}")
    return Candidates(offered, pinned, allowed)


def priced(
    options: RunOptions,
    table: LayerTable,
    fixed_bytes: int,
    device: DeviceSpec | None,
    precisions: Sequence[Precision],
) -> CostTable:
    """Sizes, bit operations and, where there is a device, latency and energy per layer and precision.

    Raises InputError where energy is asked for and the device gives none.
    """
    costs = cost_table(table, precisions, fixed_bytes, options.size_of)
    if device is None:
        return costs
    costs = with_device(costs, table, device)
    if "energy_j" in (*options.budgets, *options.objectives) and costs.energy_j is None:
        raise InputError(f"device {device.name} gives no energy; budget its latency, or name another device")
    return costs


def as_coded(costs: CostTable, table: LayerTable, sensitivity: SensitivityTable) -> CostTable:
    """The costs with the bytes of entropy-coded layers, and bits of their codes, as `sensitivity` has coded them."""
    sizes = sensitivity.coded_bytes
    if sizes is None:
        return costs
    weight_bytes, code_bits = costs.weight_bytes.copy(), costs.code_bits.copy()
    for column, precision in enumerate(costs.precisions):
        if precision.rate:
            coded = sizes[:, sensitivity.precisions.index(precision)]
            inputs = [input_bytes(layer, precision) for layer in table]
            weight_bytes[:, column] = np.ceil(coded).astype(np.int64) + inputs
            code_bits[:, column] = np.rint(8 * coded)
    return replace(costs, weight_bytes=weight_bytes, code_bits=code_bits)


def _offered(options: RunOptions, device: DeviceSpec | None) -> tuple[Precision, ...]:
    wanted = _on_target(options)
    if device is None:
        return wanted
    runs = tuple(precision for precision in wanted if precision.arithmetic in device.kernels)
    if not runs:
        raise InputError(
            f"device {device.name} runs none of {', '.join(map(str, wanted))}; it runs "
            f"{', '.join(map(str, device.precisions))}: ask for those with --wbits and --abits"
        )
    return runs


def _on_target(options: RunOptions) -> tuple[Precision, ...]:
    """What was asked for, as far as the target runs it. Raises InputError where that is nothing."""
    if options.target is None:
        return options.precisions
    target = load_target(options.target)
    runs = tuple(precision for precision in options.precisions if precision.arithmetic in target.precisions)
    if not runs:
        target.require(options.precisions)
    return runs


def _pinned(options: RunOptions, table: LayerTable, fixed_bytes: int, device: DeviceSpec | None) -> tuple[str, ...]:
    edge = options.edge
    if device is not None and edge.arithmetic not in device.kernels:
        if options.edges == "8":
            raise InputError(f"device {device.name} does not run {edge}; take --edges free")
        return ()
    rules = [parse_rule(text) for text in options.fix]
    given = {rule.layer for rule in rules if not rule.forbids}
    costs = priced(options, table, fixed_bytes, device, (edge,))
    edges = pinned_edges(table, costs, options.budgets, options.edges)
    return tuple(name for name in edges if name not in given)
