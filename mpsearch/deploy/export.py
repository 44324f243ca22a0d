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
from mpsearch.export.encodings import VERSIONS
from mpsearch.export.outfile import require_free
from mpsearch.export.plan.records import LAYERS, Plan


@dataclass(frozen=True, slots=True)
class Written:
    """What an export has written: bytes, and in a line each what a user should know of it."""

    size_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Format:
    """A format by its name on the command line: the `extra` that it needs with the module that this brings, what
    writes it, and what else it writes beside the file that is asked for."""

    extra: str
    module: str
    write: Callable[[FinishedModel, Path, bool], Written]
    beside: Callable[[Path], tuple[Path, ...]] = lambda path: ()


def export_model(model: FinishedModel, form: str, path: Path, *, force: bool, packed: bool) -> Written:
    """Writes a finished model to `path` in the format `form`.

    Raises InputError where the format, or its library, is not there, where `path` cannot be written, and where the
    model has no such form.
    """
    known = FORMATS[form]
    if importlib.util.find_spec(known.module) is None:
        raise InputError(f"--format {form} needs {known.module}: pip install 'mpsearch[{known.extra}]'")
    for place in (path, *known.beside(path)):
        require_free(place, force)
    return known.write(model, path, packed)


def _onnx(model: FinishedModel, path: Path, packed: bool) -> Written:
    from mpsearch.export.onnx.write import write_onnx

    plan = model.plan(real_outputs=True)
    made = write_onnx(plan, model.metadata(), numpy_dtypes(model), packed)
    content = made.SerializeToString(deterministic=True)
    write_whole(path, content)
    return Written(len(content), notes_of(plan))


def _aimet(model: FinishedModel, path: Path, packed: bool) -> Written:
    """The float model with its weights on their grids, and the grids beside it, in both versions."""
    from mpsearch.export.encodings import as_json, encodings_of, inexpressible
    from mpsearch.export.onnx.real import write_real

    plan = model.plan(real_outputs=True)
    made = write_real(plan, model.metadata(), numpy_dtypes(model))
    activations, weights = encodings_of(plan, made.tensors, made.weights)
    beside = _encodings(path)
    for version, place in zip(VERSIONS, beside, strict=True):
        write_whole(place, as_json(activations, weights, version).encode())
    content = made.model.SerializeToString(deterministic=True)
    write_whole(path, content)
    notes = [f"encodings of {len(weights)} weights and {len(activations)} tensors: {', '.join(map(str, beside))}"]
    if odd := inexpressible(activations):
        notes.append(f"encodings 2.0.0 have no type for the bits of {len(odd)} tensors, {odd[0]} first: use 1.0.0")
    return Written(len(content), tuple(notes))


def _encodings(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(f"{path.stem}-{version}.encodings") for version in VERSIONS)


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


FORMATS = {"onnx": Format("onnx", "onnx", _onnx), "aimet": Format("onnx", "onnx", _aimet, _encodings)}
