"""Finds the bit-width of every layer of a trained network and finishes it by block reconstruction.

Names are loaded when they are first asked for, so that `mpsearch --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpsearch.export.packed import load_packed

__all__ = ["load_packed"]


def __getattr__(name: str) -> Any:
    if name == "load_packed":
        return import_module("mpsearch.export.packed").load_packed
    raise AttributeError(f"module 'mpsearch' has no attribute {name!r}")
