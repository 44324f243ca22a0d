"""What a run was asked for: the record behind `config.toml`."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from hwmodel import FLOAT_BITS, WEIGHT_BITS, InputError, Precision
from hwmodel.device import load_device
from mpsearch.request.budgets import COSTS, FRONT, NEED_DEVICE
from mpsearch.request.rules import parse_rule, parse_tie

EDGE_BITS = 8
EdgePolicy = Literal["auto", "8", "free"]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Everything that determines a run's result.

    Budgets are upper bounds in the units of their names; at least one is needed. `size_budget_bytes` is what the packed
    file may take; latency and energy are those of `device`, a name or a file. `objectives` are the costs that the front
    spans beside the loss, those of `default_objectives` where none is named. Without `abits` activations stay float,
    32 among them is float. `symmetric` grids of weights have their zero-point in the middle.
    `edges` says what becomes of the first and the last layer: 8 bits (`8`), like any other (`free`), or 8 bits unless
    that takes more than a quarter of a budget (`auto`). `fix` and `tie` are rules about single layers, as on the
    command line. `granularity` is what is reconstructed at once: layer, block, stage or network. Beyond
    `cache_memory_bytes` the inputs and outputs of blocks are kept in files, with no other effect.
    """

    model: str
    size_budget_bytes: int | None = None
    latency_budget_s: float | None = None
    energy_budget_j: float | None = None
    bops_budget: float | None = None
    mean_bits_budget: float | None = None
    device: str | None = None
    objectives: tuple[str, ...] = ()
    weights: str | None = None
    data: str | None = None
    wbits: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    abits: tuple[int, ...] = ()
    symmetric: bool = False
    edges: EdgePolicy = "auto"
    fix: tuple[str, ...] = ()
    tie: tuple[str, ...] = ()
    samples: int = 512
    val_samples: int = 0
    seed: int = 0
    population: int = 200
    generations: int = 200
    steps: int = 40
    granularity: str = "block"
    cache_memory_bytes: int = 2 * 2**30

    def __post_init__(self) -> None:
        unknown = [bits for bits in self.wbits if bits not in WEIGHT_BITS]
        unknown += [bits for bits in self.abits if bits not in (*WEIGHT_BITS, FLOAT_BITS)]
        if unknown or not self.wbits:
            raise InputError(
                f"candidate bits must be among {_list(WEIGHT_BITS)}, got {_list(tuple(unknown)) or 'none'}"
            )
        edge_policy(self.edges)
        for text in self.fix:
            parse_rule(text)
        for text in self.tie:
            parse_tie(text)
        if not self.budgets:
            options = ", ".join(cost.option for cost in COSTS.values())
            raise InputError(f"a budget is needed, say --size-budget 1.5MB; there are {options}")
        for name, limit in self.budgets.items():
            if not 0 < limit < float("inf"):
                raise InputError(f"{COSTS[name].option} must be above zero, got {limit}")
        wanted = next((name for name in (*self.budgets, *self.objectives) if name in NEED_DEVICE), None)
        if wanted and self.device is None:
            raise InputError(
                f"{COSTS[wanted].title} is that of a device; name one with --device (see mpsearch devices)"
            )
        for name, least in (("samples", 1), ("val_samples", 0), ("seed", 0), ("cache_memory_bytes", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")

    @property
    def budgets(self) -> dict[str, float]:
        """The upper bounds by the name of the cost."""
        limits = {name: getattr(self, cost.field) for name, cost in COSTS.items()}
        return {name: float(limit) for name, limit in limits.items() if limit is not None}

    @property
    def demo(self) -> bool:
        """Neither weights nor data were given: the embedded default."""
        return self.weights is None and self.data is None

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What every layer may have, in ascending order."""
        return tuple(Precision(w, a) for w in sorted(self.wbits) for a in sorted(self.abits) or (FLOAT_BITS,))

    @property
    def edge(self) -> Precision:
        """What the first and last layer have where they are held."""
        return Precision(EDGE_BITS, EDGE_BITS if self.abits else FLOAT_BITS)

    def to_toml(self) -> str:
        """The text of `config.toml`."""
        lines = [f"{name} = {json.dumps(value)}" for name, value in asdict(self).items() if value not in (None, ())]
        return "\n".join(["# mpsearch run options; budgets in the units of their names", *lines, ""])

    @classmethod
    def from_toml(cls, path: Path) -> RunOptions:
        """The inverse of `to_toml`. Raises InputError where the file is missing or not ours."""
        if not path.is_file():
            raise InputError(f"{path.parent} is no run folder: it has no {path.name}; make one with `mpsearch run`")
        try:
            data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
            known = {field.name for field in fields(cls)}
            if not known >= set(data):
                raise ValueError(f"unknown key {sorted(set(data) - known)[0]!r}")
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            return cls(**values)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is damaged: {error}") from None


def edge_policy(text: str) -> EdgePolicy:
    """Reads `--edges`. Raises InputError for what it does not take."""
    for policy in get_args(EdgePolicy):
        if text == policy:
            return text  # type: ignore[return-value]
    raise InputError(f"--edges must be one of {_list(get_args(EdgePolicy))}, got {text!r}")


def parse_objectives(text: str) -> tuple[str, ...]:
    """Reads `size,latency`: one or two of size, latency, energy. Raises InputError for anything else."""
    titles = {COSTS[name].title: name for name in FRONT}
    parts = [part.strip() for part in text.split(",")]
    if not all(part in titles for part in parts) or len(set(parts)) != len(parts) or len(parts) > 2:
        raise InputError(f"--objectives takes one or two of {', '.join(titles)}, got {text!r}")
    return tuple(titles[part] for part in parts)


def device_abits(device: str, wbits: tuple[int, ...]) -> tuple[int, ...]:
    """Candidate activation bits where none are asked for: the widest that the device runs with any of `wbits`.

    Float activations are candidates too where it runs them as they are, as a measured table may say.
    """
    runs = load_device(device).precisions
    widths = {precision.a for precision in runs if precision.w in wbits} or {precision.a for precision in runs}
    quantized = widths - {FLOAT_BITS}
    return (max(quantized), *sorted(widths & {FLOAT_BITS})) if quantized else ()


def _list(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values))


def parse_abits(text: str) -> tuple[int, ...]:
    """Reads `4,8` or `8,32`, 32 for float; float alone is no candidate bits. Raises InputError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    quantized = [part for part in parts if part != str(FLOAT_BITS)]
    if not quantized:
        return ()
    return (*parse_bits(",".join(quantized)), *([FLOAT_BITS] if len(quantized) < len(parts) else []))


def parse_bits(text: str) -> tuple[int, ...]:
    """Reads `2,3,4,8`, ascending and without repeats. Raises InputError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) in WEIGHT_BITS for part in parts):
        raise InputError(f"candidate bits look like 2,3,4,8, each among {_list(WEIGHT_BITS)}; got {text!r}")
    return tuple(sorted({int(part) for part in parts}))
