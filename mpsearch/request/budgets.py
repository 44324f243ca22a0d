"""What may be budgeted: a configuration's costs, the options that bound them, and how people write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hwmodel import BitConfig
from mpsearch.request.units import (
    format_number,
    format_si,
    parse_duration,
    parse_energy,
    parse_mean_bits,
    parse_operations,
    parse_size,
)


@dataclass(frozen=True, slots=True)
class Cost:
    """A cost by the name that the problem has for it, in that name's unit.

    `field` is the run option that bounds it and `option` that option on the command line; `least` is what the
    configuration that has least of it is called. `shown` is its unit in tables and pictures, `scale` of which make one
    of the name's.
    """

    name: str
    title: str
    field: str
    option: str
    least: str
    shown: str
    scale: float
    parse: Callable[[str], float]

    def text(self, value: float) -> str:
        """`value` for reading, with its unit."""
        match self.name:
            case "size_bytes":
                return f"{value:,.0f} bytes"
            case "mean_bits":
                return f"{format_number(value)} bits"
            case _:
                return format_si(value, self.shown[1:])


COSTS: Mapping[str, Cost] = {
    cost.name: cost
    for cost in (
        Cost("size_bytes", "size", "size_budget_bytes", "--size-budget", "smallest", "MB", 1e-6, parse_size),
        Cost("mean_bits", "mean bits", "mean_bits_budget", "--mean-bits", "narrowest", "bits", 1, parse_mean_bits),
        Cost("bops", "bit operations", "bops_budget", "--bops-budget", "leanest", "GBOPs", 1e-9, parse_operations),
        Cost("latency_s", "latency", "latency_budget_s", "--latency-budget", "fastest", "ms", 1e3, parse_duration),
        Cost("energy_j", "energy", "energy_budget_j", "--energy-budget", "least-energy", "mJ", 1e3, parse_energy),
    )
}
NEED_DEVICE = ("latency_s", "energy_j")
FRONT = ("size_bytes", "latency_s", "energy_j")


def default_objectives(budgets: Mapping[str, float], device: bool) -> tuple[str, ...]:
    """The costs that a front spans beside the loss: the budgeted ones of size, latency and energy, at most two.

    Latency joins size where there is a device; where none of the three is budgeted, the front is over size.
    """
    chosen = [name for name in FRONT if name in budgets] or ["size_bytes"]
    if device and chosen == ["size_bytes"]:
        chosen.append("latency_s")
    return tuple(chosen[:2])


def share(costs: Mapping[str, float], budgets: Mapping[str, float]) -> float:
    """How much of the tightest budget is used: 1 is all of it."""
    return max(costs[name] / limit for name, limit in budgets.items())


def describe(config: BitConfig) -> str:
    """A bit assignment in a line: what most layers have, and which have what else."""
    groups: dict[str, list[str]] = {}
    for name, precision in zip(config.layers, config.precisions, strict=True):
        groups.setdefault(str(precision), []).append(name)
    common = max(groups, key=lambda precision: len(groups[precision]))
    rest = [f"{precision} in {_few(names)}" for precision, names in sorted(groups.items()) if precision != common]
    return f"{common} everywhere" + (f" but {', '.join(rest)}" if rest else "")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more layers" if len(names) > 3 else "")
