"""Opening an exported file in the runtime that its name says."""

from __future__ import annotations

import atexit
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import torch

from hwmodel import InputError
from mpsearch.deploy.check import Opened, Runner
from mpsearch.deploy.finished import FinishedModel
from mpsearch.export.filesize import numpy_dtypes


def open_exported(path: Path) -> Opened:
    """The file in its runtime. Raises InputError where it is missing, damaged, or the runtime is not there."""
    if not path.exists():
        raise InputError(f"{path} is missing: expected a file of `mpsearch export`")
    if path.is_dir():
        return _c(path)
    if path.suffix not in _OPENERS:
        raise InputError(f"check reads {', '.join(_OPENERS)} and folders of C, got {path}")
    return _OPENERS[path.suffix](path)


def require(module: str, extra: str, what: str) -> None:
    """Raises InputError where a module is not installed."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{what} needs {module}: pip install 'mpsearch[{extra}]'")


def _onnx(path: Path) -> Opened:
    for module in ("onnx", "onnxruntime"):
        require(module, "onnx", f"checking {path}")
    import onnxruntime

    from mpsearch.export.onnx.session import FLOAT_LAYERS, INTEGER_LAYERS, Session, kernels, read_model, require_version
    from mpsearch.export.onnx.write import write_onnx
    from mpsearch.export.plan.build import float_plan

    remark = require_version()
    data, metadata = read_model(path)
    counts = kernels(data, str(path))

    def pair(model: FinishedModel, threads: int) -> tuple[Runner, Runner | None]:
        real = write_onnx(float_plan(model.loaded.network), {}, numpy_dtypes(model.network)).SerializeToString()
        return Session(data, threads, str(path)), Session(real, threads, "the float network")

    integers = sum(counts[kind] for kind in INTEGER_LAYERS)
    layers = integers + sum(counts[kind] for kind in FLOAT_LAYERS)
    runtime = f"onnxruntime {onnxruntime.__version__}"
    return Opened(metadata, runtime, "onnx", pair, integers, layers, dict(counts), remark)


def _tflite(path: Path) -> Opened:
    require("ai_edge_litert", "tflite", f"checking {path}")
    from importlib.metadata import version

    from mpsearch.export.tflite.session import Interpreter, read_file

    data, metadata, counts = read_file(path)

    def pair(model: FinishedModel, threads: int) -> tuple[Runner, Runner | None]:
        return Interpreter(data, threads, str(path)), None

    runtime = f"LiteRT {version('ai-edge-litert')}"
    layers = sum(counts[kind] for kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"))
    return Opened(metadata, runtime, "tflite", pair, layers, layers, dict(counts))


def _c(path: Path) -> Opened:
    from mpsearch.export.c.program import Program, arena_bytes, build, read_metadata

    metadata = read_metadata(path)
    place = mkdtemp(prefix="mpsearch-c-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    program, said = build(path, Path(place))

    def pair(model: FinishedModel, threads: int) -> tuple[Runner, Runner | None]:
        return Program(program, model.plan("c")), None

    return Opened(metadata, "C99", "c", pair, None, None, {"arena_bytes": arena_bytes(path)}, said)


def _pte(path: Path) -> Opened:
    require("executorch", "executorch", f"checking {path}")
    from importlib.metadata import version

    from mpsearch.export.torch.pte import Method, pte_bytes, read_pte

    data, metadata, counts = read_pte(path)

    def pair(model: FinishedModel, threads: int) -> tuple[Runner, Runner | None]:
        sample = tuple(leaf.contiguous() for leaf in model.loaded.calibration[:1].single().leaves)
        real = torch.export.export(model.loaded.network.module.eval(), sample)
        return Method(data, str(path)), Method(pte_bytes(real, {}), "the float network")

    runtime = f"ExecuTorch {version('executorch')}"
    return Opened(metadata, runtime, "pt2e", pair, None, None, counts, threads={"all": 0})


_OPENERS: dict[str, Callable[[Path], Opened]] = {".onnx": _onnx, ".tflite": _tflite, ".pte": _pte}
