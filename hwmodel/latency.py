"""What a layer costs on a device: latency and energy, by the model that the device file names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hwmodel.breakdown import DeviceCosts
from hwmodel.cost import CostTable
from hwmodel.device import DeviceSpec
from hwmodel.errors import InputError
from hwmodel.layer import LayerTable
from hwmodel.lookup import lookup_costs
from hwmodel.precision import Precision
from hwmodel.roofline import roofline_costs
from hwmodel.systolic import systolic_costs


def device_costs(table: LayerTable, precisions: Sequence[Precision], device: DeviceSpec) -> DeviceCosts:
    """Latency and energy per image of every layer at every precision, arrays (L, C), and what they are made of.

    Float activations count as `device.activation_bits_default` bits where the device has no kernel for them. Raises
    InputError where the device does not run a precision.
    """
    unsupported = [str(precision) for precision in precisions if not device.supports(precision)]
    if unsupported:
        runs = ", ".join(map(str, device.precisions))
        raise InputError(f"device {device.name} does not run {', '.join(unsupported)}; it runs {runs}")
    run_as = [device.resolve(precision) for precision in precisions]
    if device.table is not None:
        costs = lookup_costs(table, run_as, device.table)
    elif device.model == "systolic":
        costs = systolic_costs(table, run_as, device)
    else:
        costs = roofline_costs(table, run_as, device)
    return replace(costs, precisions=tuple(precisions))


def with_device(costs: CostTable, table: LayerTable, device: DeviceSpec) -> CostTable:
    """The cost table with the device's latency and energy. Raises InputError like `device_costs`."""
    found = device_costs(table, costs.precisions, device)
    return replace(costs, latency_s=found.latency_s, energy_j=found.energy_j)
