"""A folder of exported C as a program: built with the machine's compiler, run on samples."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError
from mpsearch.export.c.write import fixed_files
from mpsearch.export.plan.real import quantize, real
from mpsearch.export.plan.records import Plan

WRITTEN = ("model.h", "golden.h")  # of a network; all else is the same for each


def read_metadata(folder: Path) -> dict[str, str]:
    """What the folder says of itself. Raises InputError where it is none of ours."""
    try:
        data = json.loads((folder / "model.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no folder of `mpsearch export --format c` (model.json: {error})") from None
    return {str(key): str(value) for key, value in data.items()} if isinstance(data, dict) else {}


def build(folder: Path, into: Path) -> tuple[Path, str]:
    """The program, built in another folder, and what its self-test says.

    Raises InputError where there is no compiler, where the Makefile, the kernels or the self-test are not ours, and
    where the code does not build or its outputs are not the golden ones.
    """
    for tool in ("make", "cc"):
        if shutil.which(tool) is None:
            raise InputError(f"checking C needs {tool}: install a C compiler and make")
    fixed = fixed_files()
    for name in (*fixed, *WRITTEN):
        try:
            text = (folder / name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{folder / name} cannot be read ({error}); export it again") from None
        if name in fixed and text != fixed[name]:
            raise InputError(
                f"{folder / name} is not what this version of mpsearch writes: it is not run; export it again"
            )
        (into / name).write_text(text, encoding="utf-8")
    done = subprocess.run(["make", "-s"], cwd=into, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise InputError(f"{folder} does not pass its self-test: {said[0] if said else done.returncode}")
    return into / "selftest", done.stdout.strip()


def arena_bytes(folder: Path) -> int:
    """The memory that the network writes to."""
    found = re.search(r"#define MPS_ARENA_BYTES (\d+)", (folder / "model.h").read_text("utf-8"))
    return int(found[1]) if found else 0


class Program:
    """The program of a plan."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan

    def run(self, leaves: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs as real numbers for the tensors (N, …) of a call."""
        plan, count = self.plan, len(leaves[0])
        codes = []
        for name, leaf in zip(plan.inputs, leaves, strict=True):
            grid = plan.tensors[name].grid
            assert grid is not None
            codes.append(quantize(grid, leaf))
        given = b"".join(part[k].tobytes() for k in range(count) for part in codes)
        found = subprocess.run([self.path, "-"], input=given, capture_output=True, check=True).stdout
        rows = np.frombuffer(found, np.int8).reshape(count, -1)
        outputs, at = [], 0
        for name in plan.outputs:
            tensor = plan.tensors[name]
            size = int(np.prod(tensor.shape[1:]))
            outputs.append(real(tensor, rows[:, at : at + size].reshape(count, *tensor.shape[1:])))
            at += size
        return outputs
