"""What a run was asked for: the record behind `config.toml`."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from hwmodel import FLOAT_BITS, WEIGHT_BITS, InputError, Precision

EDGE_BITS = 8
EdgePolicy = Literal["auto", "8", "free"]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Everything that determines a run's result.

    `size_budget_bytes` is what the packed file may take. Without `abits` activations stay float. `edges` says what
    becomes of the first and the last layer: 8 bits (`8`), like any other (`free`), or 8 bits unless that takes more
    than a quarter of the budget (`auto`).
    """

    model: str
    size_budget_bytes: int
    weights: str | None = None
    data: str | None = None
    wbits: tuple[int, ...] = (2, 3, 4, 6, 8)
    abits: tuple[int, ...] = ()
    edges: EdgePolicy = "auto"
    samples: int = 512
    val_samples: int = 0
    seed: int = 0
    population: int = 200
    generations: int = 200
    steps: int = 40
    polish_steps: int = 400

    def __post_init__(self) -> None:
        unknown = [bits for bits in (*self.wbits, *self.abits) if bits not in WEIGHT_BITS]
        if unknown or not self.wbits:
            raise InputError(
                f"candidate bits must be among {_list(WEIGHT_BITS)}, got {_list(tuple(unknown)) or 'none'}"
            )
        edge_policy(self.edges)
        for name, least in (("size_budget_bytes", 1), ("samples", 1), ("val_samples", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")

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
        lines = [f"{name} = {json.dumps(value)}" for name, value in asdict(self).items() if value is not None]
        return "\n".join(["# mpsearch run options; size_budget_bytes in bytes", *lines, ""])

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


def _list(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values))


def parse_bits(text: str) -> tuple[int, ...]:
    """Reads `2,3,4,8`, ascending and without repeats. Raises InputError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) in WEIGHT_BITS for part in parts):
        raise InputError(f"candidate bits look like 2,3,4,8, each among {_list(WEIGHT_BITS)}; got {text!r}")
    return tuple(sorted({int(part) for part in parts}))
