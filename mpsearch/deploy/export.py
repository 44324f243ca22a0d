"""Writing a finished model as files of another runtime."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch.export import ExportedProgram

from hwmodel import InputError
from hwmodel.files import write_whole
from mpsearch.deploy.finished import FinishedModel
from mpsearch.export.encodings import VERSIONS
from mpsearch.export.filesize import numpy_dtypes
from mpsearch.export.outfile import require_free
from mpsearch.export.plan.records import LAYERS, Plan

GOLDEN_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Choices:
    """What may be asked for beside a format: ONNX without gaps between codes, TFLite with 4-bit weights."""

    packed: bool = False
    int4: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """What an export has written: bytes, and in a line each what a user should know of it."""

    size_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """An export before it is written: the contents of its files, and notes as in `Written`."""

    files: Mapping[Path, bytes]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Format:
    """A format by its name on the command line: the module that it needs with the extra that this comes with, what
    makes it for a path, which of the choices it has, what it writes beside the path, and whether that is a folder."""

    module: str | None
    extra: str
    make: Callable[[FinishedModel, Path, Choices], Made]
    choices: tuple[str, ...] = ()
    beside: Callable[[Path], tuple[Path, ...]] = lambda path: ()
    folder: bool = False


def export_model(model: FinishedModel, form: str, path: Path, choices: Choices, *, force: bool) -> Written:
    """Writes a finished model to `path`, a file or for C a folder, in the format `form`.

    Raises InputError where the format, or its library, is not there, where `path` cannot be written, and where the
    model has no such form.
    """
    known = FORMATS[form]
    for choice in ("packed", "int4"):
        if getattr(choices, choice) and choice not in known.choices:
            able = ", ".join(name for name, other in FORMATS.items() if choice in other.choices)
            raise InputError(f"--{choice} is a choice of --format {able}, not of {form}")
    if known.module is not None and importlib.util.find_spec(known.module) is None:
        raise InputError(f"--format {form} needs {known.module}: pip install 'mpsearch[{known.extra}]'")
    require_free(path, force, folder=known.folder)
    for place in known.beside(path):
        require_free(place, force, folder=False)
    made = known.make(model, path, choices)
    if known.folder:
        path.mkdir(exist_ok=True)
    for place, content in made.files.items():
        write_whole(place, content)
    return Written(sum(map(len, made.files.values())), made.notes)


def _onnx(model: FinishedModel, path: Path, choices: Choices) -> Made:
    from mpsearch.export.onnx.write import fill_up, write_onnx

    form = "onnx-packed" if choices.packed else "onnx"
    plan, size = model.plan(form), model.filled(form)
    made = write_onnx(plan, model.metadata(), numpy_dtypes(model.network), choices.packed)
    if size is not None:
        fill_up(made, size)
    return Made({path: made.SerializeToString(deterministic=True)}, notes_of(plan))


def _qonnx(model: FinishedModel, path: Path, choices: Choices) -> Made:
    from mpsearch.export.onnx.qonnx import write_qonnx

    made = write_qonnx(model.simulated_plan(), model.metadata(), numpy_dtypes(model.network))
    note = "tensors that a layer reads are on its grid, all others stay float, as in the packed file"
    return Made({path: made.SerializeToString(deterministic=True)}, (note,))


def _aimet(model: FinishedModel, path: Path, choices: Choices) -> Made:
    """The float model with its weights on their grids, and the grids beside it, in both versions."""
    from mpsearch.export.encodings import as_json, encodings_of, inexpressible
    from mpsearch.export.onnx.real import write_real

    plan = model.plan("onnx")
    made = write_real(plan, model.metadata(), numpy_dtypes(model.network))
    activations, weights = encodings_of(plan, made.tensors, made.weights)
    beside = _encodings(path)
    files = {
        place: as_json(activations, weights, version).encode() for version, place in zip(VERSIONS, beside, strict=True)
    }
    notes = [f"encodings of {len(weights)} weights and {len(activations)} tensors: {', '.join(map(str, beside))}"]
    if odd := inexpressible(activations):
        notes.append(f"encodings 2.0.0 have no type for the bits of {len(odd)} tensors, {odd[0]} first: use 1.0.0")
    return Made({**files, path: made.model.SerializeToString(deterministic=True)}, tuple(notes))


def _encodings(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(f"{path.stem}-{version}.encodings") for version in VERSIONS)


def _c(model: FinishedModel, path: Path, choices: Choices) -> Made:
    from mpsearch.export.c.write import write_c

    plan = model.plan("c")
    samples = model.loaded.calibration[:GOLDEN_SAMPLES].single()
    files = write_c(plan, [leaf.numpy() for leaf in samples.leaves], model.metadata())
    return Made({path / name: text.encode() for name, text in files.items()}, notes_of(plan))


def _tflite(model: FinishedModel, path: Path, choices: Choices) -> Made:
    from mpsearch.export.tflite.write import filled_tflite, write_tflite

    form = "tflite-int4" if choices.int4 else "tflite"
    plan, about, size = model.plan(form), model.metadata(), model.filled(form)
    made = write_tflite(plan, about, choices.int4) if size is None else filled_tflite(plan, about, choices.int4, size)
    return Made({path: made}, notes_of(plan))


def _pt2e(model: FinishedModel, path: Path, choices: Choices) -> Made:
    from mpsearch.export.torch.module import program_bytes

    plan, program = _program(model)
    return Made({path: program_bytes(program, model.metadata())}, notes_of(plan))


def _pte(model: FinishedModel, path: Path, choices: Choices) -> Made:
    from mpsearch.export.torch.pte import pte_bytes

    plan, program = _program(model)
    return Made({path: pte_bytes(program, model.metadata())}, notes_of(plan))


def _program(model: FinishedModel) -> tuple[Plan, ExportedProgram]:
    from mpsearch.export.torch.module import exported_program

    plan = model.plan("pt2e")
    return plan, exported_program(plan, model.loaded.calibration[:1].single().leaves)


def notes_of(plan: Plan) -> tuple[str, ...]:
    """What is not exactly as it is in the packed file, and what stays float."""
    layers = [op for op in plan.ops if op.kind in LAYERS]
    real = [op for op in layers if op.weight is not None and op.weight.steps is None]
    if len(real) == len(layers):
        return ("activations are float: weights are stored at their bits, arithmetic is float", *plan.notes)
    kinds: dict[str, int] = {}
    for op in plan.floats():
        computes_integers = op.weight is not None and op.weight.steps is not None
        if not computes_integers:
            kind = str(op.settings["target"]).removeprefix("aten.") if op.kind == "float" else op.kind
            kinds[kind] = kinds.get(kind, 0) + 1
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    stays = (f"stays float, between DequantizeLinear and QuantizeLinear: {counted}",) if kinds else ()
    return (f"{len(layers) - len(real)} of {len(layers)} layers in integers", *stays, *plan.notes)


FORMATS = {
    "onnx": Format("onnx", "onnx", _onnx, ("packed",)),
    "tflite": Format("ai_edge_litert", "tflite", _tflite, ("int4",)),
    "qonnx": Format("onnx", "onnx", _qonnx),
    "c": Format(None, "", _c, folder=True),
    "pt2e": Format(None, "", _pt2e),
    "pte": Format("executorch", "executorch", _pte),
    "aimet": Format("onnx", "onnx", _aimet, beside=_encodings),
}
