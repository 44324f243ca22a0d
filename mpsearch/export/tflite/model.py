"""Collecting a TFLite model: tensors, operators, buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpsearch.export.plan.records import Grid

IDENTIFIER = b"TFL3"
FORMAT_VERSION = 3


class Model:
    """A model of one subgraph that is being written. Tensors are known by their index."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self._graph = schema.SubGraphT()
        self._graph.name, self._graph.tensors, self._graph.operators = "main", [], []
        self._model = schema.ModelT()
        self._model.version, self._model.description = FORMAT_VERSION, "mpsearch"
        self._model.buffers, self._model.operatorCodes = [schema.BufferT()], []
        self._codes: dict[tuple[int, int], int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def tensor(self, name: str, shape: Sequence[int], kind: str, grid: Grid | None = None) -> int:
        """A tensor that operators write, or an input."""
        made = self.schema.TensorT()
        made.name, made.shape, made.buffer = name, [int(size) for size in shape], 0
        made.type = getattr(self.schema.TensorType, kind)
        if grid is not None:
            made.quantization = self._quantization([grid.scale], [grid.zero], 0)
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def constant(self, values: ArrayLike, kind: str = "INT32", grid: Grid | None = None) -> int:
        """A constant tensor; equal ones without a grid are there once."""
        array = np.ascontiguousarray(values)
        key = kind, array.shape, array.tobytes()
        if grid is not None or key not in self._constants:
            at = self.tensor(f"constant_{len(self._graph.tensors)}", array.shape, kind, grid)
            self._graph.tensors[at].buffer = self._buffer(array.tobytes())
            if grid is not None:
                return at
            self._constants[key] = at
        return self._constants[key]

    def weights(
        self, name: str, shape: Sequence[int], kind: str, data: bytes, scale: NDArray[np.floating[Any]], axis: int
    ) -> int:
        """A constant tensor with a scale for each index of `axis`."""
        at = self.tensor(name, shape, kind)
        self._graph.tensors[at].buffer = self._buffer(data)
        self._graph.tensors[at].quantization = self._quantization(scale, np.zeros(len(scale)), axis)
        return at

    def operator(self, kind: str, version: int, inputs: Sequence[int], output: int, options: str, **values: Any) -> int:
        """Adds an operator with its options; its output."""
        code = getattr(self.schema.BuiltinOperator, kind)
        if (code, version) not in self._codes:
            entry = self.schema.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), version
            self._codes[code, version] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(entry)
        made = self.schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = self._codes[code, version], list(inputs), [output]
        made.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
        made.builtinOptions = getattr(self.schema, f"{options}T")()
        for key, value in values.items():
            setattr(made.builtinOptions, key, value)
        self._graph.operators.append(made)
        return output

    def finish(self, inputs: Sequence[int], outputs: Sequence[int], metadata: Mapping[str, str]) -> bytes:
        """The file."""
        import flatbuffers

        self._graph.inputs, self._graph.outputs = list(inputs), list(outputs)
        self._model.subgraphs, self._model.metadata = [self._graph], []
        for key, text in metadata.items():
            entry = self.schema.MetadataT()
            entry.name, entry.buffer = key, self._buffer(text.encode())
            self._model.metadata.append(entry)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _buffer(self, data: bytes) -> int:
        made = self.schema.BufferT()
        made.data = np.frombuffer(data, np.uint8)
        self._model.buffers.append(made)
        return len(self._model.buffers) - 1

    def _quantization(self, scale: ArrayLike, zero: ArrayLike, axis: int) -> Any:
        made = self.schema.QuantizationParametersT()
        made.scale, made.quantizedDimension = np.asarray(scale, np.float32).tolist(), axis
        made.zeroPoint = np.asarray(zero, np.int64).tolist()
        return made
