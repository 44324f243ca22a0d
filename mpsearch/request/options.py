"""What the user asks for: frozen records of options, and `config.toml`, which keeps those of a run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w

from hwmodel import FLOAT_BITS, WEIGHT_BITS, InputError, Precision
from hwmodel.device import load_device
from hwmodel.filesize import PACKED, SIZES
from hwmodel.precision import CODED_BITS, RATES, is_rate
from hwmodel.target import load_target
from mpsearch.files.reading import reading
from mpsearch.request.budgets import COSTS, NEED_DEVICE
from mpsearch.request.compute import HERE, ComputeOptions
from mpsearch.request.flags import BUDGETS, DETECTION, MODEL, PLACE, RECONSTRUCTION, SEARCH, Flag
from mpsearch.request.parse import (
    Coding,
    EdgePolicy,
    device_abits,
    edge_policy,
    listed,
    parse_abits,
    parse_bits,
    parse_coding,
    parse_objectives,
    parse_rates,
    parse_shape,
    parse_size_of,
)
from mpsearch.request.places import found_again, seen_from
from mpsearch.request.rules import parse_rule, parse_tie
from mpsearch.request.units import (
    parse_duration,
    parse_energy,
    parse_mean_bits,
    parse_operations,
    parse_size,
)

EDGE_BITS = 8
WBITS = (2, 3, 4, 5, 6, 8)


# A field's default stands in the record; the command line shows it as people write it.
_SIZE = Flag(BUDGETS, "What the file may take: 1.5MB, 900kB, 2MiB.", parse_size, None, "--size-budget", "SIZE")
_SIZE_OF = f"Whose size it is: {', '.join(SIZES)} (c: constants of the code)."
_LATENCY = Flag(
    BUDGETS, "Seconds an image on the device: 3ms, 250us.", parse_duration, None, "--latency-budget", "TIME"
)
_ENERGY = Flag(BUDGETS, "Joules an image on the device: 1mJ, 800uJ.", parse_energy, None, "--energy-budget", "ENERGY")
_BOPS = Flag(BUDGETS, "Bit operations an image: 34G.", parse_operations, None, "--bops-budget", "COUNT")
_MEAN_BITS = Flag(BUDGETS, "Mean bits of a weight: 3.5.", parse_mean_bits, None, "--mean-bits", "BITS")
_OBJECTIVES = "What the front spans beside the loss, one or two of size, latency, energy (default: what is budgeted)."
_ABITS = "Candidate activation bits: 8, 4,8 or 8,32 (32: float) (default: float; on a device, its widest)."
_CODING = "How codes of weights are stored: fixed, at their width, or entropy: candidates are --rates then."
_RATES = "Candidate bits a weight where codes are entropy-coded."
_INPUT = "What the model takes, where nothing says it: 3x224x224."
_TARGET = "The runtime that it is for, which has rules for bits and grids (see mpsearch targets)."
_STEPS = "Most reconstruction steps a block; up to four times as many where much is to be done."
_TASK = "What the network is for: classification, regression, segmentation, embedding, detection or FILE.py:task."
_DECODE = "What makes boxes and scores of a detector's outputs; torchvision's detectors bring their own."
_ANNOTATIONS = "COCO's JSON of the validation images (default: instances_val.json in the data folder)."
_CONFIDENCE = "Score above which a detection counts (default: 0.001; torchvision's detectors have their own)."
_NMS = "Overlap above which the lesser of two detections of a class goes (default: 0.65, or the detector's own)."
_FIT = "How images of other sizes go in: letterbox, in proportion with a grey margin, or squash."
_MEMORY = "Memory for the inputs and outputs of blocks; what is beyond it is kept in files."


def _text_of(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions(ComputeOptions):
    """Which network: a name or a factory, its `weights`, and the `data` that it is for.

    `weights_key` says what to take from a checkpoint of several networks, `input_size` what shape a sample has.
    """

    model: Annotated[
        str, Flag(MODEL, "A torchvision classifier, file.py:factory or package.module:factory.", metavar="MODEL")
    ] = "mobilenetv2"
    weights: Annotated[
        str | None, Flag(MODEL, "safetensors or a torch checkpoint; a JSON may stand beside it.", metavar="PATH")
    ] = None
    weights_key: Annotated[
        str | None, Flag(MODEL, "Where in the checkpoint the weights are, if it holds several.", metavar="KEY")
    ] = None
    data: Annotated[
        str | None,
        Flag(MODEL, "A folder of images, a .npz, file.py:factory, or distilled: none.", metavar="DATA"),
    ] = None
    input_size: Annotated[tuple[int, ...] | None, Flag(MODEL, _INPUT, parse_shape, None, "--input", "SHAPE")] = None

    @property
    def demo(self) -> bool:
        """Neither weights nor data were given: the embedded default."""
        return self.weights is None and self.data is None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishOptions(ModelOptions):
    """How a configuration is finished: on which images, what is measured, and how it is reconstructed.

    `symmetric` grids of weights have their zero-point in the middle; a `target`, by name or file, asks for that at the
    bits that its runtime has signed integers for. `edges` says what becomes of the first and the
    last layer: 8 bits (`8`), or like any other (`free`). `granularity` is what is reconstructed at once: layer, block,
    stage or network. Beyond `cache_memory_bytes` the inputs and outputs of blocks are kept in files, with no other
    effect. A detector's outputs are read by `decode`, a reference as that of a factory; `annotations` names a JSON,
    detections of `confidence` and below do not count, nor those that `nms` suppresses; images `fit` by letterbox or
    squash.
    """

    task: Annotated[str, Flag(MODEL, _TASK, metavar="TASK")] = "classification"
    decode: Annotated[str | None, Flag(DETECTION, _DECODE, metavar="FILE.py:decode")] = None
    annotations: Annotated[str | None, Flag(DETECTION, _ANNOTATIONS, metavar="PATH")] = None
    confidence: Annotated[float | None, Flag(DETECTION, _CONFIDENCE, metavar="SHARE")] = None
    nms: Annotated[float | None, Flag(DETECTION, _NMS, metavar="SHARE")] = None
    fit: Annotated[str, Flag(DETECTION, _FIT)] = "letterbox"
    samples: Annotated[int, Flag(MODEL, "Calibration images.")] = 512
    val_samples: Annotated[int, Flag(MODEL, "Validation images; 0 for all.")] = 0
    seed: Annotated[int, Flag(PLACE, "Seed of everything random.")] = 0
    edges: Annotated[
        EdgePolicy,
        Flag(RECONSTRUCTION, "First and last layer where all get the same bits: 8 or free.", edge_policy, "8"),
    ] = "8"
    symmetric: Annotated[bool, Flag(RECONSTRUCTION, "Weights on grids with the zero-point in the middle.")] = False
    target: Annotated[str | None, Flag(RECONSTRUCTION, _TARGET, metavar="TARGET")] = None
    steps: Annotated[int, Flag(RECONSTRUCTION, _STEPS)] = 40
    granularity: Annotated[str, Flag(RECONSTRUCTION, "What is fitted at once: layer, block, stage or network.")] = (
        "block"
    )
    cache_memory_bytes: Annotated[int, Flag(PLACE, _MEMORY, parse_size, "2GiB", "--cache-memory", "SIZE")] = 2 * 2**30

    def __post_init__(self) -> None:
        edge_policy(self.edges)
        if self.fit not in ("letterbox", "squash"):
            raise InputError(f"--fit must be letterbox or squash, got {self.fit!r}")
        for option, share in (("--confidence", self.confidence), ("--nms", self.nms)):
            if share is not None and not 0 <= share <= 1:
                raise InputError(f"{option} must be from 0 to 1, got {share}")
        for name, least in (("samples", 1), ("val_samples", 0), ("seed", 0), ("cache_memory_bytes", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        if self.target is not None:
            load_target(self.target)
        ComputeOptions.__post_init__(self)  # super() does not know a class that slots made anew

    @property
    def symmetric_bits(self) -> tuple[int, ...]:
        """The bits of weights whose grids have the zero-point in the middle."""
        if self.symmetric:
            return WEIGHT_BITS
        return () if self.target is None else load_target(self.target).symmetric_bits

    @property
    def channel_steps(self) -> bool:
        """Whether what depthwise layers read may have a step for every channel."""
        return self.target is None or load_target(self.target).channel_steps

    def to_toml(self, folder: Path | None = None) -> str:
        """The text of the file that keeps the options in a run folder, with files named as seen from `folder`."""
        here = {field.name for field in fields(ComputeOptions)}
        values = {name: value for name, value in asdict(self).items() if value not in (None, ()) and name not in here}
        values = values if folder is None else seen_from(folder, values)
        return f"# mpsearch run options; budgets in the units of their names\n{tomli_w.dumps(values)}"

    @classmethod
    def from_toml(cls, path: Path, place: ComputeOptions = HERE) -> Self:
        """The inverse of `to_toml`, computed where `place` says.

        Raises InputError where the file is missing or not ours.
        """
        if not path.is_file():
            raise InputError(f"{path.parent} is no run folder: it has no {path.name}; make one with `mpsearch run`")
        with reading(path, "mend it, or start again with `mpsearch run` and another --out"):
            data = found_again(path.parent, tomllib.loads(path.read_text(encoding="utf-8")))
            known = {field.name for field in fields(cls)} - {field.name for field in fields(ComputeOptions)}
            if not known >= set(data):
                raise ValueError(f"unknown key {sorted(set(data) - known)[0]!r}")
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            here = {field.name: getattr(place, field.name) for field in fields(ComputeOptions)}
            return cls(**values, **here)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(FinishOptions):
    """Everything that determines a run's result.

    Budgets are upper bounds in the units of their names; at least one is needed. `size_budget_bytes` is what the file
    of `size_of` may take, by default the packed one; latency and energy are those of `device`, a name or a file.
    `objectives` are the costs that the front spans beside the loss, those of `default_objectives` where none is named.
    Without `abits` activations stay float, 32 among them is float. With `coding` entropy, codes of weights are stored
    entropy-coded and candidates are `rates`, bits that a weight takes in the file; with fixed they are `wbits`. `edges`
    are those of `FinishOptions`, or 8 bits unless that takes more than a quarter of a budget (`auto`). `fix` and `tie`
    are rules about single layers, as on the command line.
    """

    size_budget_bytes: Annotated[int | None, _SIZE] = None
    size_of: Annotated[str, Flag(BUDGETS, _SIZE_OF, parse_size_of, PACKED, "--size-of", "FILE")] = PACKED
    latency_budget_s: Annotated[float | None, _LATENCY] = None
    energy_budget_j: Annotated[float | None, _ENERGY] = None
    bops_budget: Annotated[float | None, _BOPS] = None
    mean_bits_budget: Annotated[float | None, _MEAN_BITS] = None
    device: Annotated[
        str | None, Flag(BUDGETS, "A device's name, its TOML, or a lookup table (.csv, .json).", metavar="DEVICE")
    ] = None
    objectives: Annotated[tuple[str, ...], Flag(BUDGETS, _OBJECTIVES, parse_objectives, metavar="COSTS")] = ()
    wbits: Annotated[
        tuple[int, ...],
        Flag(SEARCH, "Candidate weight bits.", parse_bits, listed(WBITS).replace(" ", ""), metavar="BITS"),
    ] = WBITS
    coding: Annotated[Coding, Flag(SEARCH, _CODING, parse_coding, "fixed")] = "fixed"
    rates: Annotated[tuple[float, ...], Flag(SEARCH, _RATES, parse_rates, _text_of(RATES), metavar="BITS")] = RATES
    abits: Annotated[tuple[int, ...], Flag(SEARCH, _ABITS, parse_abits, metavar="BITS")] = ()
    edges: Annotated[
        EdgePolicy,
        Flag(SEARCH, "First and last layer: 8, free, or auto (8 where the budget has room).", edge_policy, "auto"),
    ] = "auto"
    fix: Annotated[
        tuple[str, ...], Flag(SEARCH, "LAYER=8, LAYER=4,8 or LAYER!=2; may be repeated.", metavar="RULE")
    ] = ()
    tie: Annotated[
        tuple[str, ...], Flag(SEARCH, "LAYER,LAYER,… that get the same bits; may be repeated.", metavar="LAYERS")
    ] = ()
    population: Annotated[int, Flag(SEARCH, "Configurations a generation.")] = 200
    generations: Annotated[int, Flag(SEARCH, "Generations at most.")] = 200

    def __post_init__(self) -> None:
        unknown = [bits for bits in self.wbits if bits not in WEIGHT_BITS]
        unknown += [bits for bits in self.abits if bits not in (*WEIGHT_BITS, FLOAT_BITS)]
        if unknown or not self.wbits:
            raise InputError(
                f"candidate bits must be among {listed(WEIGHT_BITS)}, got {listed(tuple(unknown)) or 'none'}"
            )
        for name, count, least in (("population", self.population, 8), ("generations", self.generations, 1)):
            if count < least:
                raise InputError(f"--{name} must be at least {least}, got {count}")
        self._check_coding()
        self._check_size_of()
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
        FinishOptions.__post_init__(self)

    def _check_coding(self) -> None:
        parse_coding(self.coding)
        if not self.rates or not all(map(is_rate, self.rates)):
            raise InputError(f"candidate rates must be 0.5 to 8 bits in eighths, got {_text_of(self.rates) or 'none'}")
        if self.coding == "fixed" and self.rates != RATES:
            raise InputError("--rates are candidates where codes are entropy-coded: add --coding entropy")
        if self.coding == "entropy" and self.wbits != WBITS:
            raise InputError(
                "--wbits are candidates where codes have a fixed width: with --coding entropy, give --rates"
            )

    def _check_size_of(self) -> None:
        if parse_size_of(self.size_of) == PACKED:
            return
        if self.coding != "fixed":
            raise InputError(
                f"--size-of {self.size_of}: exports store codes at their width; leave out --coding entropy"
            )
        if self.size_of == "tflite-int4" and 4 not in self.symmetric_bits:
            raise InputError("--size-of tflite-int4 needs symmetric 4-bit weights: add --target tflite-int4")

    @classmethod
    def from_flags(cls, given: Mapping[str, Any]) -> Self:
        """As above; on a device, activations that nobody asked for are the widest that it, or else the target, runs.
        A device may name the target."""
        values = dict(given)
        if values.get("device") is not None and "target" not in values:
            values["target"] = load_device(values["device"]).target
        if "abits" not in values and values.get("device") is not None:
            widths = (CODED_BITS,) if values.get("coding") == "entropy" else values.get("wbits", WBITS)
            values["abits"] = device_abits(values["device"], widths)
        elif "abits" not in values and values.get("target") is not None:
            values["abits"] = load_target(values["target"]).activation_bits[-1:]
        return cls(**values)

    @property
    def budgets(self) -> dict[str, float]:
        """The upper bounds by the name of the cost."""
        limits = {name: getattr(self, cost.field) for name, cost in COSTS.items()}
        return {name: float(limit) for name, limit in limits.items() if limit is not None}

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What every layer may have, in ascending order."""
        widths = sorted(self.abits) or (FLOAT_BITS,)
        if self.coding == "entropy":
            return tuple(sorted(Precision(CODED_BITS, a, rate) for rate in self.rates for a in widths))
        return tuple(Precision(w, a) for w in sorted(self.wbits) for a in widths)

    @property
    def edge(self) -> Precision:
        """What the first and last layer have where they are held."""
        return edge_precision(bool(self.abits), self.coding == "entropy")


def edge_precision(quantized_inputs: bool, coded: bool) -> Precision:
    """What edge layers have where they are held: 8 bits, for their inputs too where inputs are quantized; codes that
    are entropy-coded get the highest rate."""
    return Precision(EDGE_BITS, EDGE_BITS if quantized_inputs else FLOAT_BITS, float(CODED_BITS) if coded else 0.0)
