"""Weights in files: read without running any code, and put into the network that they belong to."""

from __future__ import annotations

import argparse
import pathlib
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hwmodel.errors import InputError
from mpsearch.sources.checkpoints import State, align

_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")
MOST_UNPACKED = 20  # times its size
_STATISTICS = ("running_mean", "running_var")


def _require_plain(path: Path) -> None:
    """Raises InputError where a checkpoint would unpack to far more than it is: torch packs nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return  # no archive, or a damaged one, which is said when it is read
    if size > MOST_UNPACKED * path.stat().st_size:
        raise InputError(
            f"weights {path} have {path.stat().st_size:,} bytes and would unpack to {size:,}; expected a file made by "
            "torch.save, which packs nothing"
        )


def read_weights(path: Path) -> Any:
    """What a safetensors file or a torch checkpoint holds.

    Of a checkpoint only tensors, numbers, names and paths are read (`weights_only`). Raises InputError where the file
    is missing, damaged or holds anything else.
    """
    if not path.is_file():
        raise InputError(f"no such weights file: {path}; expected a safetensors file or a torch checkpoint")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"weights {path} are no safetensors file ({error}); get the file again") from error
    _require_plain(path)
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise almost anything
        what = _REFUSED.search(str(error))
        raise InputError(
            f"weights {path} are damaged, or hold more than tensors (code in a checkpoint is never run"
            f"{f': {what[1]}' if what else ''}); "
            "expected a file made by torch.save(model.state_dict(), ...) or a safetensors file"
        ) from error


def _harmless() -> list[Any]:
    """What stands in checkpoints beside tensors and does nothing when it is made: numpy's numbers, options, paths."""
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    scalars = [np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType, np.dtypes.Int32DType]
    old = [(multiarray.scalar, "numpy.core.multiarray.scalar")]
    old += [(multiarray._reconstruct, "numpy.core.multiarray._reconstruct")]
    paths = [(pathlib.PosixPath, "pathlib.PosixPath"), (pathlib.PosixPath, "pathlib._local.PosixPath")]
    arrays = [multiarray.scalar, multiarray._reconstruct, np.ndarray, np.dtype]
    return [*arrays, *scalars, *old, *paths, argparse.Namespace]


def fit_weights(model: nn.Module, state: State, architecture: str, source: str) -> tuple[str, ...]:
    """Copies the tensors into the model; counters of batch norm may be missing. Returns notes on what was adapted.

    Raises InputError that names what is missing, unknown or of another shape.
    """
    own = model.state_dict()
    state, notes = align(state, own.keys(), source)
    shared = [name for name in own if name in state and not is_lazy(own[name])]
    shapes = [
        f"{name}: expected {list(own[name].shape)}, saw {list(state[name].shape)}"
        for name in shared
        if own[name].shape != state[name].shape
    ]
    kinds = [
        f"{name}: {state[name].dtype}"
        for name in shared
        if own[name].is_floating_point() != state[name].is_floating_point()
    ]
    unfit = {text.partition(":")[0] for text in shapes}
    fitting = OrderedDict((name, value) for name, value in state.items() if name not in unfit)
    fitting._metadata = getattr(state, "_metadata", getattr(own, "_metadata", {}))  # type: ignore[attr-defined]
    missing, unknown = model.load_state_dict(fitting, strict=False)
    missing = [name for name in missing if name not in state and not name.endswith("num_batches_tracked")]
    faults = [
        f"{len(names)} {what} (first: {names[0]})"
        for names, what in (
            (missing, "missing"),
            (unknown, "unknown"),
            (shapes, "of another shape"),
            (kinds, "of another type"),
        )
        if names
    ]
    if faults:
        raise InputError(
            f"weights {source} do not fit {architecture}: of {len(own)} tensors expected and {len(state)} seen, "
            f"{', '.join(faults)}; name the model that they belong to"
        )
    return notes


def require_finite(model: nn.Module, source: str) -> None:
    """Raises InputError where a parameter is NaN or infinite, a buffer is NaN, or statistics of a norm are infinite.

    Masks are buffers of ±inf. Also refuses what has no values: lazy models and those on the meta device.
    """
    buffers = {name for name, _ in model.named_buffers()}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            continue  # what a module keeps by get_extra_state
        if is_lazy(value) or value.is_meta:
            kind = "on the meta device" if value.is_meta else "lazy"
            raise InputError(
                f"{source}: {name} is {kind} and has no values; give a model that has been run, or weights"
            )
        if value.is_quantized:
            raise InputError(f"{source}: {name} is quantized already; give the float model")
        if not value.is_floating_point():
            continue
        mask = name in buffers and not name.endswith(_STATISTICS)
        broken = int((torch.isnan(value) if mask else ~torch.isfinite(value)).sum())
        if broken:
            raise InputError(f"weights must be finite, but {name} of {source} has {broken} NaN or infinite values")
