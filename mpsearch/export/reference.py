"""What a packed file says of the model that it is of, a name without a path, and building that model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hwmodel.errors import InputError
from mpsearch.export.header import shown
from mpsearch.sources.factory import canonical, is_factory
from mpsearch.sources.models import build_architecture

_TORCHVISION = "torchvision:"
_ARCHITECTURE = re.compile(
    r"torchvision:[a-z0-9_]+(\?(num_classes|image_size|transform_input|no_epsilon)=[0-9]{1,7}"
    r"(&(num_classes|image_size|transform_input|no_epsilon)=[0-9]{1,7})*)?",
    re.ASCII,
)
_MOST_CHARACTERS = 200  # of a name in a message
_PATH = re.compile(r".*[/\\](?=[^/\\]*\.py:[^:]*$)", re.DOTALL)


def portable(reference: str) -> str:
    """The reference without the folder of its file: `net.py:make` of `/home/me/net.py:make`."""
    return _PATH.sub("", reference)


def built(reference: str, allow: str | None, most_values: int, path: Path) -> nn.Module:
    """The model that the packed file at `path` is of, by the `reference` in it.

    torchvision's architectures are built by name, of at most `most_values` parameters: what the file can hold. Code is
    called where `allow` names it: the reference of the file, with the path that its code has here. Raises InputError
    for anything else.
    """
    if _ARCHITECTURE.fullmatch(reference):
        return _architecture(reference, most_values, path)
    name = shown(reference, _MOST_CHARACTERS)
    code = is_factory(reference) and not reference.startswith(_TORCHVISION)
    if allow is not None and code:
        if portable(allow) != reference:
            raise InputError(f"{path} is of {name}, and allowed is {allow!r}: allow that, or pass model=")
        return build_architecture(canonical(allow))
    hint = f"load_packed(path, allow={name}), with its path, runs that code, and " if code else ""
    raise InputError(
        f"{path} is of {name}, which a file may not build: {hint}load_packed(path, model=MODULE) fills yours"
    )


class _Shapes(TorchFunctionMode):
    """While it is open, tensors that are made to be filled have a shape only and take no memory.

    `torch.device("meta")` would make all tensors so, but RegNet computes its widths with some.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return function(*args, **{**(kwargs or {}), **({"device": "meta"} if function is torch.empty else {})})


def _architecture(reference: str, most_values: int, path: Path) -> nn.Module:
    try:
        with _Shapes():
            values = sum(parameter.numel() for parameter in build_architecture(reference).parameters())
        if values > most_values:
            raise InputError(f"{path} is too small for {reference!r}, which has {values:,} parameters")
        return build_architecture(reference)
    except InputError:
        raise
    except Exception as error:  # whatever a constructor finds wrong with its options
        first = (str(error).strip().splitlines() or [""])[0]
        raise InputError(f"{path} is of {reference!r}, which cannot be built: {first}") from None
