"""Measured costs: a table of layer shapes and precisions, in CSV or JSON.

A row gives a layer's shape, a precision, `seconds` per image, and optionally `joules`, the `spread` of the repeats
(half the distance between quartiles, in seconds) and the `kernel` that ran. CSV: one header line with the columns of
`COLUMNS` (the last three may be missing or empty). JSON: {"format": "mpsearch-lookup-1", "source": "…", "rows": [{…}]}.

A layer whose shape and precision are in the table costs what the row says. Otherwise a fit over the table's rows at
that precision is used, and the answer says so:

    seconds = c₀ + c₁·macs + c₂·weights + c₃·(inputs + outputs),   all cᵢ ≥ 0, least relative squares,

over the depthwise rows for a depthwise layer and over the others for the others.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.breakdown import DeviceCosts
from hwmodel.errors import InputError
from hwmodel.files import write_whole
from hwmodel.json_text import parse_json
from hwmodel.layer import LayerKind, LayerSpec, LayerTable
from hwmodel.precision import Precision

FORMAT = "mpsearch-lookup-1"
SHAPE = (
    "kind", "in_channels", "out_channels", "kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w",
    "groups", "in_h", "in_w", "out_h", "out_w",
)  # fmt: skip
COLUMNS = (*SHAPE, "weight_bits", "activation_bits", "seconds", "joules", "spread", "kernel")
REQUIRED = COLUMNS[: COLUMNS.index("joules")]


@dataclass(frozen=True, slots=True, order=True)
class LayerShape:
    """What a kernel sees of a layer: everything but its name and its place in the network."""

    kind: LayerKind
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]

    @classmethod
    def of(cls, layer: LayerSpec) -> LayerShape:
        """The shape of a layer."""
        return cls(
            layer.kind, layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.dilation,
            layer.groups, layer.in_size, layer.out_size,
        )  # fmt: skip

    def layer(self, name: str = "layer") -> LayerSpec:
        """A layer of this shape, called once. Raises InputError where the shape is none."""
        return LayerSpec(name, **asdict(self), block=name, tie=name)

    def __str__(self) -> str:
        def size(pair: tuple[int, int]) -> str:
            return f"{pair[0]}x{pair[1]}"

        text = f"{self.kind} {self.in_channels}->{self.out_channels} k{size(self.kernel)} s{size(self.stride)}"
        extra = f" d{size(self.dilation)}" if self.dilation != (1, 1) else ""
        groups = f" g{self.groups}" if self.groups > 1 else ""
        return f"{text}{extra}{groups} on {size(self.in_size)}"


@dataclass(frozen=True, slots=True)
class LookupRow:
    """One measurement, per image."""

    shape: LayerShape
    precision: Precision
    seconds: float
    joules: float | None = None
    spread: float | None = None
    kernel: str = ""

    def __post_init__(self) -> None:
        for name in ("seconds", "joules", "spread"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"lookup table: {name} of {self.shape} at {self.precision} must be ≥ 0, got {value}")


@dataclass(frozen=True, slots=True)
class LookupTable:
    """Rows by shape and precision, and where they were measured. Two rows of one shape and precision are an error."""

    source: str
    rows: tuple[LookupRow, ...]
    index: Mapping[tuple[LayerShape, Precision], LookupRow] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = {(row.shape, row.precision): row for row in self.rows}
        if not self.rows:
            raise InputError("lookup table: expected at least one row, got none")
        if len(index) < len(self.rows):
            twice = next(row for row in self.rows if index[row.shape, row.precision] is not row)
            raise InputError(f"lookup table: {twice.shape} at {twice.precision} has two rows; keep one")
        object.__setattr__(self, "index", index)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Every precision that has a row."""
        return tuple(sorted({row.precision for row in self.rows}))

    def missing(self, table: LayerTable, precisions: Sequence[Precision]) -> tuple[tuple[str, Precision], ...]:
        """The layers, by name, and precisions that have no row of their own and get a fitted cost."""
        return tuple(
            (layer.name, precision)
            for layer in table
            for precision in precisions
            if (LayerShape.of(layer), precision) not in self.index
        )


def lookup_costs(table: LayerTable, precisions: Sequence[Precision], lookup: LookupTable) -> DeviceCosts:
    """Measured latency (and energy, where every row used has joules) of L layers at C precisions, per image.

    `binds` is `measured` for a row of the table and `interpolated` for a fit; the whole latency counts as compute,
    because a measurement of the total cannot tell. Raises InputError where there is neither row nor fit.
    """
    missing = lookup.missing(table, precisions)
    fits = {key: _fit(lookup, *key) for key in {(table[_at(table, n)].depthwise, p) for n, p in missing}}
    lost = [f"{n} at {p}" for n, p in missing if fits[table[_at(table, n)].depthwise, p] is None]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise InputError(f"lookup table has no rows for {', '.join(lost[:3])}{more}, nor rows like them; measure them")
    shape = (len(table), len(precisions))
    seconds, joules = np.zeros(shape), np.full(shape, np.nan)
    binds = np.full(shape, "interpolated")
    for i, layer in enumerate(table):
        for j, precision in enumerate(precisions):
            row = lookup.index.get((LayerShape.of(layer), precision))
            if row is None:
                fit = fits[layer.depthwise, precision]
                assert fit is not None
                seconds[i, j] = float(_features(layer) @ fit) * layer.uses
            else:
                seconds[i, j] = row.seconds * layer.uses
                joules[i, j] = np.nan if row.joules is None else row.joules * layer.uses
                binds[i, j] = "measured"
    zero = np.zeros(shape)
    energy = None if np.isnan(joules).any() else joules
    return DeviceCosts(table.names, tuple(precisions), seconds, seconds, zero, zero, energy, zero, binds)


def read_lookup(path: Path) -> LookupTable:
    """Reads a table from CSV or JSON. Raises InputError naming the line and the column that is wrong."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read lookup table {path} ({error})") from None
    if path.suffix == ".json":
        return _from_json(text, str(path))
    reader = csv.DictReader(text.splitlines())
    _check_columns(reader.fieldnames or (), str(path))
    return LookupTable(str(path), tuple(_row(row, f"{path}, line {reader.line_num}") for row in reader))


def write_lookup(table: LookupTable, path: Path) -> None:
    """Writes a table as CSV or JSON, by the path's suffix. CSV has no place for `source`."""
    rows = [_flat(row) for row in table.rows]
    if path.suffix == ".json":
        text = json.dumps({"format": FORMAT, "source": table.source, "rows": rows}, indent=1)
        write_whole(path, text.encode())
        return
    if path.suffix != ".csv":
        raise InputError(f"a lookup table is a .csv or .json file, got {path}")
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, file.getvalue().encode())


def read_haq(path: Path) -> NDArray[np.float64]:
    """The numbers of a HAQ table, a `.npy` file. Raises InputError where it is none; pickles are never loaded."""
    try:
        costs = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is no .npy file of numbers ({error})") from None
    if not isinstance(costs, np.ndarray) or costs.dtype.kind not in "fiu":
        raise InputError(f"{path} must hold an array of numbers, as np.save writes it")
    if not (np.isfinite(costs).all() and (costs >= 0).all()):
        raise InputError(f"{path} must hold finite numbers of at least 0")
    return costs.astype(np.float64)


def import_haq(costs: NDArray[np.float64], table: LayerTable, unit_s: float, batch: int, source: str) -> LookupTable:
    """The public lookup tables of HAQ (Wang et al., CVPR 2019): costs (L, 8, 8) by layer, weight and activation bits.

    Entry [i, w - 1, a - 1] is the cost of the i-th convolution or linear layer in the order of the model's modules
    (github.com/mit-han-lab/haq, lib/env/linear_quantize_env.py; its MobileNetV2 table is for a batch of 16) for a
    batch, in units of `unit_s` seconds, which the files do not state. `table` has the layers in that order. Layers of
    one shape are averaged; 1-bit entries are left out. Raises InputError where the shape differs.
    """
    if batch < 1:
        raise InputError(f"a HAQ table is for a batch of at least 1, got {batch}")
    if costs.ndim != 3 or costs.shape[0] != len(table) or costs.shape[1:] != (8, 8):
        raise InputError(f"a HAQ table of {table.model} must have shape ({len(table)}, 8, 8), got {costs.shape}")
    cells: dict[tuple[LayerShape, Precision], list[float]] = {}
    for layer, own in zip(table, costs, strict=True):
        for w, a in itertools.product(range(2, 9), repeat=2):
            cells.setdefault((LayerShape.of(layer), Precision(w, a)), []).append(float(own[w - 1, a - 1]))
    rows = (
        LookupRow(shape, precision, float(np.mean(values)) * unit_s / batch)
        for (shape, precision), values in cells.items()
    )
    return LookupTable(source, tuple(rows))


def _features(layer: LayerSpec) -> NDArray[np.float64]:
    return np.array([1.0, layer.macs / layer.uses, layer.n_weights, layer.n_activations + layer.n_outputs])


def _fit(lookup: LookupTable, depthwise: bool, precision: Precision) -> NDArray[np.float64] | None:
    """Coefficients of the module's formula, by trying every set of non-zero ones; None without rows."""
    rows = [(r.shape.layer(), r.seconds) for r in lookup.rows if r.precision == precision and r.seconds > 0]
    rows = [(layer, seconds) for layer, seconds in rows if layer.depthwise == depthwise]
    if not rows:
        return None
    seconds = np.array([s for _, s in rows])
    relative = np.array([_features(layer) for layer, _ in rows]) / seconds[:, None]
    best, least = None, np.inf
    for size in range(1, min(4, len(rows)) + 1):
        for some in itertools.combinations(range(4), size):
            scale = np.maximum(np.abs(relative[:, some]).max(axis=0), 1e-300)
            solution = np.linalg.lstsq(relative[:, some] / scale, np.ones(len(rows)), rcond=None)[0] / scale
            error = float(((relative[:, some] @ solution - 1) ** 2).sum())
            if (solution >= 0).all() and error < least:
                least, best = error, np.zeros(4)
                best[list(some)] = solution
    return best


def _at(table: LayerTable, name: str) -> int:
    return table.names.index(name)


def _flat(row: LookupRow) -> dict[str, Any]:
    s = row.shape
    pairs = (s.kernel, s.stride, s.dilation)
    values = (s.kind, s.in_channels, s.out_channels, *itertools.chain(*pairs), s.groups, *s.in_size, *s.out_size)
    measured = (row.precision.w, row.precision.a, row.seconds, row.joules, row.spread, row.kernel)
    return dict(zip(COLUMNS, (*values, *measured), strict=True))


def _from_json(text: str, where: str) -> LookupTable:
    try:
        data = parse_json(text)
    except ValueError as error:
        raise InputError(f"{where} is no valid JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("rows"), list):
        raise InputError(f"{where} must be {{'format': '{FORMAT}', 'source': …, 'rows': [{{…}}]}}")
    for i, row in enumerate(data["rows"]):
        _check_columns(row if isinstance(row, dict) else (), f"{where}, row {i}")
    rows = (_row(row, f"{where}, row {i}") for i, row in enumerate(data["rows"]))
    return LookupTable(str(data.get("source", where)), tuple(rows))


def _check_columns(names: Iterable[str], where: str) -> None:
    names = set(names)
    for name in REQUIRED:
        if name not in names:
            raise InputError(f"{where}: column {name} is missing; expected {', '.join(REQUIRED)}")
    unknown = names - set(COLUMNS)
    if unknown:
        raise InputError(f"{where}: unknown column {min(unknown)!r}; expected {', '.join(COLUMNS)}")


def _row(cells: Mapping[str, Any], where: str) -> LookupRow:
    def number(name: str) -> float:
        try:
            return float(cells[name])
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{where}: {name} must be a number, got {cells[name]!r}") from None

    def whole(name: str) -> int:
        value = number(name)
        if not value % 1 == 0:  # nor where it is not finite
            raise InputError(f"{where}: {name} must be a whole number, got {cells[name]!r}")
        return int(value)

    def pair(name: str) -> tuple[int, int]:
        return whole(f"{name}_h"), whole(f"{name}_w")

    def maybe(name: str) -> float | None:
        return None if cells.get(name) in (None, "") else number(name)

    kind = cells["kind"]
    if kind not in ("conv", "linear"):
        raise InputError(f"{where}: kind must be conv or linear, got {kind!r}")
    shape = LayerShape(
        kind, whole("in_channels"), whole("out_channels"), pair("kernel"), pair("stride"), pair("dilation"),
        whole("groups"), pair("in"), pair("out"),
    )  # fmt: skip
    shape.layer()
    precision = Precision(whole("weight_bits"), whole("activation_bits"))
    return LookupRow(shape, precision, number("seconds"), maybe("joules"), maybe("spread"), cells.get("kernel") or "")
