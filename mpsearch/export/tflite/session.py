"""A TFLite file in LiteRT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError
from mpsearch.export.tflite.model import IDENTIFIER
from mpsearch.export.tflite.writer import MAP, TO_FIRST, TO_LAST


class Interpreter:
    """A file in LiteRT on the CPU with so many `threads`, 0 for as many as it takes; maps are channels first here.

    Raises InputError where it cannot load it.
    """

    def __init__(self, data: bytes, threads: int, where: str) -> None:
        from ai_edge_litert.interpreter import Interpreter as Runtime

        try:
            self._runtime = Runtime(model_content=data, num_threads=threads or None)
            self._runtime.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise InputError(f"LiteRT cannot load {where}: {str(error).strip().splitlines()[0]}") from None
        self._inputs = [source["index"] for source in self._runtime.get_input_details()]
        self._outputs = [output["index"] for output in self._runtime.get_output_details()]

    def run(self, leaves: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs for the tensors (N, …) of a call, one sample after another."""
        rows = []
        for k in range(len(leaves[0])):
            for at, leaf in zip(self._inputs, leaves, strict=True):
                self._runtime.set_tensor(at, np.ascontiguousarray(_moved(leaf[k : k + 1], TO_LAST)))
            self._runtime.invoke()
            rows.append([_moved(self._runtime.get_tensor(at), TO_FIRST) for at in self._outputs])
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def _moved(x: NDArray[Any], order: tuple[int, ...]) -> NDArray[Any]:
    return x.transpose(order) if x.ndim == MAP else x


def read_file(path: Path) -> tuple[bytes, dict[str, str], Counter[str]]:
    """A TFLite file, its metadata, and how often each operator is in it. Raises InputError where it is damaged."""
    from ai_edge_litert import schema_py_generated as schema

    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    if data[4:8] != IDENTIFIER:
        raise InputError(f"{path} is damaged or no TFLite file; export it again")
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
        metadata = {entry.name.decode(): bytes(model.buffers[entry.buffer].data).decode() for entry in model.metadata}
        names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
        kinds = [
            names[model.operatorCodes[operator.opcodeIndex].builtinCode] for operator in model.subgraphs[0].operators
        ]
    except Exception as error:  # a flatbuffer that is cut off fails wherever it is read
        raise InputError(f"{path} is damaged ({type(error).__name__}); export it again") from None
    return data, metadata, Counter(kinds)
