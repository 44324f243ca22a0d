"""What a runtime asks of a network before it is searched and reconstructed: a TOML file like that of a device."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from hwmodel.errors import InputError
from hwmodel.precision import WEIGHT_BITS, Precision


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """A runtime by name.

    It runs weights of `weight_bits` with activations of `activation_bits`. Weights of `symmetric_bits` have their
    zero-point in the middle, because it has signed integers without one for them. Where it `cuts_by_range`, what ReLU6
    cuts off costs nothing if it lies beyond the range of codes. `channel_steps` says whether it multiplies the channels
    of a tensor before it rounds it, so that each has a step of its own. `formats` are what `mpsearch export` writes for
    it; `source` says where these rules are from.
    """

    name: str
    title: str
    formats: tuple[str, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    symmetric_bits: tuple[int, ...]
    cuts_by_range: bool
    channel_steps: bool
    source: str

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """All that it runs."""
        return tuple(Precision(w, a) for w in self.weight_bits for a in self.activation_bits)

    def require(self, precisions: Sequence[Precision]) -> None:
        """Raises InputError where it does not run one of the precisions."""
        lacking = [precision for precision in precisions if precision.arithmetic not in self.precisions]
        if lacking:
            weights, activations = (", ".join(map(str, bits)) for bits in (self.weight_bits, self.activation_bits))
            raise InputError(
                f"target {self.name} does not run {', '.join(map(str, lacking))}: it has weights of {weights} bits and "
                f"activations of {activations}; ask for those, or for another --target (mpsearch targets)"
            )


def list_targets() -> tuple[str, ...]:
    """The names of the targets that come with the package."""
    files = resources.files("hwmodel").joinpath("targets").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_target(name_or_path: str) -> TargetSpec:
    """A target by its name, or by the path of a TOML file. Raises InputError with what is wrong."""
    if name_or_path in list_targets():
        text = resources.files("hwmodel").joinpath("targets", f"{name_or_path}.toml").read_text("utf-8")
        return parse_target(text, name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        near = difflib.get_close_matches(name_or_path, list_targets(), 1)
        hint = f"did you mean {near[0]}?" if near else f"expected a file or one of {', '.join(list_targets())}"
        raise InputError(f"no target {name_or_path!r}; {hint}")
    try:
        return parse_target(path.read_text("utf-8"), name_or_path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no readable TOML file ({error})") from None


def parse_target(text: str, where: str) -> TargetSpec:
    """Reads a target file's text; `where` names it in errors."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is no valid TOML: {error}") from None
    names = [field.name for field in fields(TargetSpec)]
    for key in (*data, *names):
        if key not in names:
            raise InputError(f"{where}: unknown key {key!r}; expected {', '.join(names)}")
        if key not in data:
            raise InputError(f"{where}: {key} is missing")
    formats = data["formats"]
    if not isinstance(formats, list) or not all(isinstance(form, str) for form in formats):
        raise InputError(f"{where}: formats must be a list of names, got {formats!r}")
    name, title, source = (_text(data[key], f"{where}: {key}") for key in ("name", "title", "source"))
    weights, activations, symmetric = (
        _bits(data[key], f"{where}: {key}") for key in ("weight_bits", "activation_bits", "symmetric_bits")
    )
    cuts, steps = (_flag(data[key], f"{where}: {key}") for key in ("cuts_by_range", "channel_steps"))
    if not weights or not activations:
        raise InputError(f"{where}: weight_bits and activation_bits must not be empty")
    return TargetSpec(name, title, tuple(formats), weights, activations, symmetric, cuts, steps, source)


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{where} must be true or false, got {value!r}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} must be a text, got {value!r}")
    return value


def _bits(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(bits) is not int or bits not in WEIGHT_BITS for bits in value):
        raise InputError(f"{where} must be a list of bits among {', '.join(map(str, WEIGHT_BITS))}, got {value!r}")
    return tuple(sorted(set(value)))
