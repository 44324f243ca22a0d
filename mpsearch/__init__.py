"""Finds the bit-width of every layer of a trained network and finishes it by block reconstruction.

Names are loaded when they are first asked for, so that `mpsearch --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpsearch.export.packed import load_packed
    from mpsearch.face import FinishedModel, Front, Point, search

_WHERE = {
    "FinishedModel": "mpsearch.face",
    "Front": "mpsearch.face",
    "Point": "mpsearch.face",
    "load_packed": "mpsearch.export.packed",
    "search": "mpsearch.face",
}
__all__ = ["FinishedModel", "Front", "Point", "load_packed", "search"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'mpsearch' has no attribute {name!r}")
