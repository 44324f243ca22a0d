"""Writing a finished model as a file of another runtime."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hwmodel import InputError
from hwmodel.files import write_whole
from mpsearch.deploy.finished import FinishedModel
from mpsearch.export.outfile import require_free
from mpsearch.export.plan.records import LAYERS, Plan

GOLDEN_SAMPLES = 4

Contents = bytes | dict[str, bytes]  # of a file, or of the files of a folder


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
class Format:
    """A format by its name on the command line: the module that it needs with the extra that this comes with, what
    writes it, and which of the choices it has."""

    module: str | None
    extra: str
    make: Callable[[FinishedModel, Choices], tuple[Contents, Plan]]
    choices: tuple[str, ...] = ()


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
    require_free(path, force, folder=form == "c")
    contents, plan = known.make(model, choices)
    if isinstance(contents, bytes):
        write_whole(path, contents)
        return Written(len(contents), notes_of(plan))
    path.mkdir(exist_ok=True)
    for name, content in contents.items():
        write_whole(path / name, content)
    return Written(sum(map(len, contents.values())), notes_of(plan))


def _onnx(model: FinishedModel, choices: Choices) -> tuple[Contents, Plan]:
    from mpsearch.export.onnx.write import write_onnx

    plan = model.plan(real_outputs=True)
    made = write_onnx(plan, model.metadata(), numpy_dtypes(model), choices.packed)
    return made.SerializeToString(deterministic=True), plan


def _qonnx(model: FinishedModel, choices: Choices) -> tuple[Contents, Plan]:
    from mpsearch.export.onnx.qonnx import write_qonnx

    plan = model.simulated_plan()
    made = write_qonnx(plan, model.metadata(), numpy_dtypes(model))
    return made.SerializeToString(deterministic=True), plan


def _c(model: FinishedModel, choices: Choices) -> tuple[Contents, Plan]:
    from mpsearch.export.c.write import write_c

    plan = model.plan()
    samples = model.loaded.calibration[:GOLDEN_SAMPLES].single()
    files = write_c(plan, [leaf.numpy() for leaf in samples.leaves], model.metadata())
    return {name: text.encode() for name, text in files.items()}, plan


def _tflite(model: FinishedModel, choices: Choices) -> tuple[Contents, Plan]:
    from mpsearch.export.tflite.write import write_tflite

    plan = model.plan(narrow=True)
    return write_tflite(plan, model.metadata(), choices.int4), plan


def _pt2e(model: FinishedModel, choices: Choices) -> tuple[Contents, Plan]:
    from mpsearch.export.torch.module import exported_program, program_bytes

    plan = model.plan(narrow=True)
    program = exported_program(plan, model.loaded.calibration[:1].single().leaves)
    return program_bytes(program, model.metadata()), plan


def numpy_dtypes(model: FinishedModel) -> tuple[np.dtype[np.generic], ...]:
    """The types of the network's inputs, real numbers in single precision."""
    return tuple(
        np.dtype(np.float32) if dtype.is_floating_point else torch.empty(0, dtype=dtype).numpy().dtype
        for dtype in model.network.dtypes
    )


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
    "c": Format(None, "", _c),
    "pt2e": Format(None, "", _pt2e),
}
