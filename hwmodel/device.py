"""What a device is: a TOML file in which every number has its unit and its source."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hwmodel.errors import InputError
from hwmodel.lookup import LookupTable, read_lookup
from hwmodel.precision import FLOAT_BITS, Precision


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that a model understands: its unit, the default where it may be left out, whether it may be zero."""

    unit: str
    meaning: str
    default: float | None = None
    zero: bool = False


SYSTOLIC = {
    "frequency": Parameter("Hz", "clock of the array"),
    "rows": Parameter("1", "units along the reduction (output positions if output-stationary)"),
    "columns": Parameter("1", "units along the output channels"),
    "positions": Parameter("1", "output positions computed at once (dataflow channels)", 1),
    "gather_channels": Parameter("1", "up to so many input channels a group, taps are gathered", 0, True),
    "weight_buffer": Parameter("B", "on-chip weights, both halves of the double buffer"),
    "input_buffer": Parameter("B", "on-chip inputs, both halves of the double buffer"),
    "output_buffer": Parameter("B", "on-chip accumulators, both halves of the double buffer"),
    "accumulator_bits": Parameter("bit", "width of a partial sum", 32),
    "output_bits": Parameter("bit", "width of an output written to main memory"),
    "partial_reads": Parameter("1", "times an output is read from main memory before it is written", 0, True),
    "memory_bandwidth": Parameter("B/s", "main memory, reads and writes together"),
    "tile_overhead": Parameter("cycle", "start of a tile", 0, True),
    "layer_overhead": Parameter("s", "start of a layer", 0, True),
    "unit_energy": Parameter("J/cycle", "one unit, working", 0, True),
    "weight_buffer_energy": Parameter("J/bit", "a weight read on chip", 0, True),
    "input_buffer_energy": Parameter("J/bit", "an input read on chip", 0, True),
    "output_buffer_energy": Parameter("J/bit", "a partial sum read or written on chip", 0, True),
    "memory_energy": Parameter("J/bit", "a bit moved to or from main memory", 0, True),
}
ROOFLINE = {
    "frequency": Parameter("Hz", "clock of the cores"),
    "memory_bandwidth": Parameter("B/s", "main memory, reads and writes together"),
    "output_bits": Parameter("bit", "width of an output written to memory"),
    "tile_positions": Parameter("1", "output positions are rounded up to multiples of this", 1),
    "tile_channels": Parameter("1", "output channels of a group are rounded up to multiples of this", 1),
    "depthwise_rate": Parameter("1", "share of the kernel's throughput that depthwise layers reach", 1),
    "pack_cycles": Parameter("cycle", "to pack one input element for the kernel", 0, True),
    "layer_overhead": Parameter("s", "start of a layer", 0, True),
    "power": Parameter("W", "drawn while working; the energy is power times time", 0, True),
}
MODELS: Mapping[str, Mapping[str, Parameter]] = {"systolic": SYSTOLIC, "roofline": ROOFLINE, "lookup": {}}
DATAFLOWS = ("channels", "output-stationary", "weight-stationary")
KERNEL_UNITS = {"systolic": ("MAC/cycle", "cycle/MAC"), "roofline": ("MAC/cycle",)}
TEXTS = ("name", "title", "model", "dataflow", "table", "caution", "activation_bits_default", "batch", "target")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number, its unit and its source; sources that are no publication begin with assumed, derived or fitted."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device: which model describes it, and the model's numbers.

    `kernels` maps each precision that the device runs to the multiply-accumulates per cycle (systolic: of one unit of
    the array; roofline: of the whole device). Where activations are float (32 bits) and the device has no such kernel,
    a layer runs with activations of `activation_bits_default` bits. `batch` images run together; costs are per image.
    `table` holds the rows of a lookup device; `target` names the runtime on it, where there is one. `caution` says
    where the model must not be trusted.
    """

    name: str
    title: str
    model: str
    kernels: Mapping[Precision, Quantity]
    numbers: Mapping[str, Quantity]
    activation_bits_default: int = 8
    batch: int = 1
    dataflow: str = "channels"
    caution: str = ""
    table: LookupTable | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError(f"device {self.name}: model must be one of {', '.join(MODELS)}, got {self.model!r}")
        if self.dataflow not in DATAFLOWS:
            raise InputError(
                f"device {self.name}: dataflow must be one of {', '.join(DATAFLOWS)}, got {self.dataflow!r}"
            )
        if self.batch < 1:
            raise InputError(f"device {self.name}: batch must be at least 1, got {self.batch}")
        if not self.kernels:
            raise InputError(f"device {self.name}: expected at least one precision under [kernels], got none")
        if (self.model == "lookup") != (self.table is not None):
            raise InputError(f"device {self.name}: a lookup device, and no other, has a table")
        for key in MODELS[self.model]:
            self._check_number(key)
        if self.model != "lookup":
            self._check_kernels()

    def _check_number(self, key: str) -> None:
        parameter, seen = MODELS[self.model][key], self.numbers.get(key)
        if seen is None:
            raise InputError(f"device {self.name}: {key} is missing; give it in {parameter.unit} ({parameter.meaning})")
        low = seen.value < 0 or (seen.value == 0 and not parameter.zero)
        if low or not math.isfinite(seen.value):
            expected = "must not be negative" if parameter.zero else "must be above zero"
            raise InputError(f"device {self.name}: {key} {expected}, got {seen.value:g}")
        if key in ("rows", "columns", "positions", "tile_positions", "tile_channels") and seen.value % 1:
            raise InputError(f"device {self.name}: {key} must be a whole number, got {seen.value:g}")
        if key == "depthwise_rate" and seen.value > 1:
            raise InputError(f"device {self.name}: depthwise_rate must be at most 1, got {seen.value:g}")

    def _check_kernels(self) -> None:
        for precision, kernel in self.kernels.items():
            whole = max(kernel.value, 1 / kernel.value)
            if self.model == "systolic" and abs(whole - round(whole)) > 1e-9:
                raise InputError(f"device {self.name}: kernel {precision} must be whole, got {kernel.value:g}")
            for other, faster in self.kernels.items():
                if other.w <= precision.w and other.a <= precision.a and faster.value < kernel.value:
                    raise InputError(
                        f"device {self.name}: kernel {other} is slower than {precision}; "
                        f"leave it out, or give it {precision}'s speed if its codes can be widened on load"
                    )

    def __getitem__(self, key: str) -> float:
        """The value of a number, in the unit that its model expects."""
        return self.numbers[key].value

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the device runs, fewest bits first."""
        return tuple(sorted(self.kernels))

    def resolve(self, precision: Precision) -> Precision:
        """What a layer of this precision runs as: float activations become `activation_bits_default` bits, and codes
        that are stored entropy-coded are decoded first."""
        precision = precision.arithmetic
        if precision not in self.kernels and precision.a == FLOAT_BITS and precision.w != FLOAT_BITS:
            return Precision(precision.w, self.activation_bits_default)
        return precision

    def supports(self, precision: Precision) -> bool:
        """Whether the search may offer this precision on this device."""
        return self.resolve(precision) in self.kernels


def list_devices() -> tuple[str, ...]:
    """The names of the devices that come with the package."""
    files = resources.files("hwmodel").joinpath("devices").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_device(name_or_path: str | Path) -> DeviceSpec:
    """A device by its name, or by the path of a TOML file or of a lookup table (CSV or JSON).

    Raises InputError with one line: what the file says wrong, or which name comes near.
    """
    text = str(name_or_path)
    if text in list_devices():
        return parse_device(resources.files("hwmodel").joinpath("devices", f"{text}.toml").read_text("utf-8"), text)
    path = Path(name_or_path)
    if not path.is_file():
        near = difflib.get_close_matches(text, list_devices())
        hint = f"did you mean {near[0]}?" if near else f"expected a file or one of {', '.join(list_devices())}"
        raise InputError(f"no device {text!r}; {hint}")
    if path.suffix in (".csv", ".json"):
        return lookup_device(read_lookup(path), path.stem)
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no readable TOML file ({error})") from None
    return parse_device(content, str(path), path.parent)


def lookup_device(table: LookupTable, name: str) -> DeviceSpec:
    """The device that a lookup table describes; it runs the precisions that have rows."""
    kernels = {precision: Quantity(1.0, "rows", table.source) for precision in table.precisions}
    return DeviceSpec(name, table.source, "lookup", kernels, {}, table=table)


def parse_device(text: str, where: str, folder: Path | None = None) -> DeviceSpec:
    """Reads a device file's text. `where` names it in errors; a lookup table is looked for in `folder`."""
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{where} is no valid TOML: brackets within brackets, too deep") from None
    except ValueError as error:
        raise InputError(f"{where} is no valid TOML: {error}") from None
    model = data.get("model")
    if not isinstance(model, str) or model not in MODELS:
        raise InputError(f"{where}: model must be one of {', '.join(MODELS)}, got {model!r}")
    parts = {"numbers", "kernels"} if model != "lookup" else set()
    _known(data, {*TEXTS, *parts}, where)
    texts = {key: data[key] for key in TEXTS if key in data}
    for key, value in texts.items():
        kind = int if key in ("activation_bits_default", "batch") else str
        if type(value) is not kind:
            raise InputError(f"{where}: {key} must be {'a whole number' if kind is int else 'a text'}, got {value!r}")
    for key in ("name", "title"):
        if key not in data:
            raise InputError(f"{where}: {key} is missing")
    table = texts.pop("table", None)
    if model == "lookup":
        if table is None:
            raise InputError(f"{where}: a lookup device needs table = 'FILE.csv'")
        found = read_lookup((folder or Path()) / table)
        return DeviceSpec(**texts, kernels=lookup_device(found, where).kernels, numbers={}, table=found)
    if table is not None:
        raise InputError(f"{where}: table belongs to lookup devices; remove it or set model = 'lookup'")
    kernels = _kernels(data.get("kernels", {}), model, where)
    return DeviceSpec(**texts, kernels=kernels, numbers=_numbers(data.get("numbers", {}), model, where))


def _numbers(section: Any, model: str, where: str) -> dict[str, Quantity]:
    expected = MODELS[model]
    _known(section, set(expected), f"{where}: [numbers]")
    found = {key: _quantity(section[key], expected[key].unit, f"{where}: {key}") for key in section}
    defaults = {
        key: Quantity(parameter.default, parameter.unit, "default")
        for key, parameter in expected.items()
        if parameter.default is not None
    }
    return defaults | found


def _quantity(entry: Any, unit: str, where: str) -> Quantity:
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be {{value = …, unit = '{unit}', source = '…'}}, got {entry!r}")
    _known(entry, {"value", "unit", "source"}, where)
    for key in ("value", "unit", "source"):
        if key not in entry:
            raise InputError(f"{where} has no {key}; write {{value = …, unit = '{unit}', source = '…'}}")
    if entry["unit"] != unit:
        raise InputError(f"{where} must be in {unit}, got {entry['unit']!r}")
    return Quantity(_number(entry["value"], where), unit, _source(entry["source"], where))


def _kernels(section: Any, model: str, where: str) -> dict[Precision, Quantity]:
    """Kernel speeds, in multiply-accumulates per cycle whatever the unit in the file."""
    where = f"{where}: [kernels]"
    units = KERNEL_UNITS[model]
    if not isinstance(section, dict) or section.get("unit") not in units:
        seen = section.get("unit") if isinstance(section, dict) else section
        raise InputError(f"{where} must have unit = '{' or '.join(units)}', got {seen!r}")
    source = _source(section.get("source"), where)
    kernels = {}
    for key, value in section.items():
        if key in ("unit", "source"):
            continue
        number = _number(value, f"{where} {key}")
        if number <= 0:
            raise InputError(f"{where} {key} must be above zero, got {number:g}")
        rate = 1 / number if section["unit"] == "cycle/MAC" else number
        kernels[Precision.parse(key)] = Quantity(rate, "MAC/cycle", source)
    return kernels


def _known(section: Any, allowed: set[str], where: str) -> None:
    if not isinstance(section, dict):
        raise InputError(f"{where} must be a table, got {section!r}")
    for key in section:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(sorted(allowed))}"
            raise InputError(f"{where}: unknown key {key!r}; {hint}")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where} must be a number, got {value!r}")
    return float(value)


def _source(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} needs a source: a publication, or 'assumed: …', 'derived: …' or 'fitted: …'")
    return value
