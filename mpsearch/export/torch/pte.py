"""ExecuTorch files: an exported program lowered to XNNPACK, and how it runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hwmodel.errors import InputError

METADATA = "mpsearch_metadata"


def pte_bytes(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """The `.pte` file of a program, which XNNPACK computes as far as it can; it carries the metadata as a method."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA: json.dumps(dict(metadata))}
    )
    return bytes(lowered.to_executorch().buffer)


class Method:
    """A file in ExecuTorch on the CPU, with as many threads as that takes, for one sample at a time.

    Raises InputError where it does not load.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self._program, self._method = _loaded(data, where)

    def run(self, leaves: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs for the tensors (N, …) of a call."""
        rows = []
        for k in range(len(leaves[0])):
            given = [torch.from_numpy(np.ascontiguousarray(leaf[k : k + 1])) for leaf in leaves]
            rows.append([output.clone().numpy() for output in self._method.execute(given)])
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def _loaded(data: bytes, where: str) -> tuple[Any, Any]:
    from executorch.runtime import Runtime

    try:
        program = Runtime.get().load_program(data)
        return program, program.load_method("forward")
    except RuntimeError as error:
        raise InputError(
            f"ExecuTorch cannot load {where}: {str(error).strip().splitlines()[0]}; export it again"
        ) from None


def read_pte(path: Path) -> tuple[bytes, dict[str, str], Counter[str]]:
    """A `.pte` file, its metadata, and how many operations are delegated and how many are not.

    Raises InputError where it is damaged or not ours.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    if data[4:6] != b"ET":
        raise InputError(f"{path} is damaged or no ExecuTorch file; export it again")
    program, _ = _loaded(data, str(path))
    if METADATA not in program.method_names:
        raise InputError(f"{path} does not say what it was exported from; expected a file of `mpsearch export`")
    (text,) = program.load_method(METADATA).execute([])
    return data, {str(key): str(value) for key, value in json.loads(text).items()}, Counter(_kinds(data))


def _kinds(data: bytes) -> dict[str, int]:
    from executorch.exir._serialize._program import deserialize_pte_binary

    plan = next(plan for plan in deserialize_pte_binary(data).program.execution_plan if plan.name == "forward")
    return {"delegates": len(plan.delegates), "operators": len(plan.operators)}
