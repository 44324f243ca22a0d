"""An ONNX file in onnxruntime: what it computes, by which kernels, and how fast."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError

OLDEST, TESTED = (1, 24, 4), (1, 32)  # Cast of 2- and 4-bit weights to integer kernels; bit-packed ones need 1.20
INTEGER_LAYERS = frozenset(
    {"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul"}
)
FLOAT_LAYERS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)


def require_version(oldest: tuple[int, ...] = OLDEST) -> str | None:
    """A remark where onnxruntime is newer than what was tested. Raises InputError where it is too old."""
    import onnxruntime

    found = tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:3])
    if found < oldest:
        raise InputError(
            f"onnxruntime {onnxruntime.__version__} is too old for this file: it needs {'.'.join(map(str, oldest))} or "
            "later; pip install -U onnxruntime"
        )
    if found[:2] > TESTED:
        return f"onnxruntime {onnxruntime.__version__} is newer than the last one tested ({'.'.join(map(str, TESTED))})"
    return None


class Session:
    """A model in onnxruntime on the CPU with so many `threads`, 0 for all. Raises InputError where it does not load."""

    def __init__(self, model: bytes, threads: int, where: str, optimized: Path | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has an exception of its own for each status
            raise InputError(f"onnxruntime cannot load {where}: {_first(error)}") from None
        self.names = [source.name for source in self._session.get_inputs()]

    def run(self, leaves: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs for the tensors (N, …) of a call."""
        fed = dict(zip(self.names, map(np.ascontiguousarray, leaves), strict=True))
        results: list[NDArray[Any]] = self._session.run(None, fed)
        return results


def kernels(model: bytes, where: str) -> Counter[str]:
    """How often each operation is left in the graph when onnxruntime has optimised it."""
    import onnx

    with _folder() as folder:
        Session(model, 1, where, folder / "optimized.onnx")
        return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder)


def read_model(path: Path) -> tuple[bytes, dict[str, str]]:
    """An ONNX file and its metadata. Raises InputError where it is missing, damaged or not ours."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path} is damaged or no ONNX file ({_first(error)}); export it again") from None
    return data, {entry.key: entry.value for entry in model.metadata_props}


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
