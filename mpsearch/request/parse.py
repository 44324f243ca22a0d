"""Options as people write them: candidate bits, objectives, what becomes of the edges."""

from __future__ import annotations

import re
from typing import Literal, get_args

from hwmodel import FLOAT_BITS, WEIGHT_BITS, InputError
from hwmodel.device import load_device
from hwmodel.filesize import SIZES
from hwmodel.precision import CODED_BITS, LEAST_RATE, is_rate
from mpsearch.request.budgets import COSTS, FRONT

EdgePolicy = Literal["auto", "8", "free"]
Coding = Literal["fixed", "entropy"]


def edge_policy(text: str) -> EdgePolicy:
    """Reads `--edges`. Raises InputError for what it does not take."""
    for policy in get_args(EdgePolicy):
        if text == policy:
            return text  # type: ignore[return-value]
    raise InputError(f"--edges must be one of {listed(get_args(EdgePolicy))}, got {text!r}")


def parse_coding(text: str) -> Coding:
    """Reads `--coding`. Raises InputError for what it does not take."""
    for coding in get_args(Coding):
        if text == coding:
            return text  # type: ignore[return-value]
    raise InputError(f"--coding must be one of {listed(get_args(Coding))}, got {text!r}")


def parse_size_of(text: str) -> str:
    """Reads `--size-of`. Raises InputError for what it does not take."""
    if text not in SIZES:
        raise InputError(f"--size-of must be one of {listed(SIZES)}, got {text!r}")
    return text


def parse_rates(text: str) -> tuple[float, ...]:
    """Reads `1.5,2,2.5,3`, ascending and without repeats. Raises InputError for anything else."""
    rates = {_number(part) for part in text.split(",")}
    if not all(map(is_rate, rates)):
        raise InputError(
            f"rates look like 1.5,2,2.5,3, each {LEAST_RATE:g} to {CODED_BITS} bits a weight in eighths; got {text!r}"
        )
    return tuple(sorted(rates))


def _number(text: str) -> float:
    """A decimal number, or 0 where the text is none."""
    return float(text) if re.fullmatch(r" *[0-9]{1,3}(\.[0-9]{1,6})? *", text, re.ASCII) else 0.0


def parse_compute(text: str) -> str:
    """Reads `--compute`; whether there is such a device shows when it is used. Raises InputError for anything else."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,2})?", text, re.ASCII):
        raise InputError(f"--compute must be cpu, cuda or a GPU by its number, as cuda:1; got {text!r}")
    return text


def parse_threads(text: str) -> int:
    """Reads `--threads`, 0 to 1024. Raises InputError for anything else."""
    if not re.fullmatch(r"[0-9]{1,4}", text, re.ASCII) or int(text) > 1024:
        raise InputError(f"--threads must be a number from 1 to 1024, or 0 for torch's own choice; got {text!r}")
    return int(text)


def parse_workers(text: str) -> int:
    """Reads `--workers`, 0 to 1024. Raises InputError for anything else."""
    if not re.fullmatch(r"[0-9]{1,4}", text, re.ASCII) or int(text) > 1024:
        raise InputError(f"--workers must be a number from 1 to 1024, or 0 for this process alone; got {text!r}")
    return int(text)


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
        raise InputError(f"candidate bits look like 2,3,4,8, each among {listed(WEIGHT_BITS)}; got {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def listed(values: tuple[object, ...]) -> str:
    """Values for a message: `2, 3, 4`."""
    return ", ".join(map(str, values))


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape of one sample: 3x224x224, or 16000."""
    parts = text.lower().replace("×", "x").split("x")
    if not all(part.isdecimal() and int(part) for part in parts) or len(parts) > 4:
        raise InputError(f"--input looks like 3x224x224, the shape of one sample, got {text!r}")
    return tuple(map(int, parts))
