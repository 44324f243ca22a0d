"""Weights in files: read without running any code, and put into the architecture that they belong to."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from hwmodel.errors import InputError

State = OrderedDict[str, Tensor]

_NESTED = ("state_dict", "model", "model_state_dict")
# DenseNet's published file predates the names of its modules ("norm.1" is "norm1" now).
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def read_weights(path: Path) -> State:
    """The tensors of a safetensors file or a torch checkpoint, all floats as float32.

    Of a checkpoint only tensors are read (`weights_only`), bare or under `state_dict` or `model`, with or without the
    prefix `module.`. Raises InputError where the file is missing, damaged or holds anything else.
    """
    if not path.is_file():
        raise InputError(f"no such weights file: {path}; expected a safetensors file or a torch checkpoint")
    if path.suffix == ".safetensors":
        try:
            loaded: Any = safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"weights {path} are no safetensors file ({error}); get the file again") from error
    else:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes raise almost anything
            raise InputError(
                f"weights {path} are damaged, or hold more than tensors (code in a checkpoint is never run); "
                "expected a file made by torch.save(model.state_dict(), ...) or a safetensors file"
            ) from error
    return tidy(loaded, str(path))


def tidy(loaded: Any, source: str) -> State:
    """A loaded checkpoint as a plain state dict in float32. Raises InputError where it is none, or not finite."""
    while isinstance(loaded, dict) and (inner := [loaded[key] for key in _NESTED if isinstance(loaded.get(key), dict)]):
        loaded = inner[0]
    if not isinstance(loaded, dict) or not loaded:
        raise InputError(f"weights {source} must hold named tensors, got {_described(loaded)}")
    state: State = OrderedDict()
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(f"weights {source} must hold named tensors only, but {name!r} is {_described(value)}")
        value = value.float() if value.is_floating_point() else value
        if not torch.isfinite(value).all():
            count = int((~torch.isfinite(value)).sum())
            raise InputError(f"weights {source} must be finite, but {name} has {count} NaN or infinite values")
        state[_DENSENET.sub(r"\1\2", name)] = value
    if hasattr(loaded, "_metadata"):  # versions of the modules: torch renames the tensors of older ones
        state._metadata = loaded._metadata  # type: ignore[attr-defined]
    consume_prefix_in_state_dict_if_present(state, "module.")
    return state


def _described(value: object) -> str:
    return "nothing" if isinstance(value, dict) else f"a {type(value).__name__}"


def fit_weights(model: nn.Module, state: State, architecture: str, source: str) -> None:
    """Copies the tensors into the model; counters of batch norm may be missing.

    Raises InputError that names what is missing, unknown or of another shape.
    """
    own = model.state_dict()
    shared = [name for name in own if name in state]
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
    if not hasattr(state, "_metadata"):
        state._metadata = getattr(own, "_metadata", {})  # type: ignore[attr-defined]
    fitting = OrderedDict((name, value) for name, value in state.items() if own.get(name, value).shape == value.shape)
    fitting._metadata = state._metadata  # type: ignore[attr-defined]
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
