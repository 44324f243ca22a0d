"""Arrays as samples: `.npz` files, and the triples that a user's function may return."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwmodel.errors import InputError
from mpsearch.sources.stored import Stored

_KINDS = (
    "uint8 images (N, height, width, channels), floats that go in as they are, or integers such as token ids (int64)"
)


def open_npz(path: Path) -> Stored:
    """The samples `x` and, where there are any, targets `y` of a file. Raises InputError where it is damaged."""
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            assert archive.zip is not None  # it is open
            _require_room(path, archive.zip)
            arrays = {key: archive[key] for key in archive.files if key in ("x", "y")}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is no readable .npz file of plain arrays ({error}); write it again") from error
    if "x" not in arrays:
        raise InputError(f"{path} must hold an array x: {_KINDS}; it has none")
    return from_arrays(arrays["x"], arrays.get("y"), str(path))


def _require_room(path: Path, archive: zipfile.ZipFile) -> None:
    """Raises InputError where memory has no room for what an archive unpacks to."""
    size, room = sum(info.file_size for info in archive.infolist()), psutil.virtual_memory().available
    if size > room:
        raise InputError(
            f"{path} unpacks to {size:,} bytes, and memory has room for {room:,}; keep fewer samples in it"
        )


def from_arrays(x: Any, y: Any, source: str) -> Stored:
    """Samples x, an array or tensor, with targets y (N, …) or None.

    uint8 (N, height, width, channels) or (N, height, width) are images; floats, of any rank, and integers, as int64, go
    into the network as they are. Raises InputError for anything else, for NaN, and where y has not as many entries.
    """
    x = _array(x, f"{source}: x")
    if x.ndim == 0 or not len(x):
        raise InputError(f"{source}: x has no samples, got shape {list(x.shape)}")
    if 0 in x.shape:
        raise InputError(f"{source}: x is empty, got shape {list(x.shape)}")
    targets = None if y is None else _targets(y, len(x), source)
    if x.dtype == np.uint8:
        return _images(x, targets, source)
    if np.issubdtype(x.dtype, np.floating):
        if not np.isfinite(x).all():
            raise InputError(f"{source}: x has NaN or infinite values")
        return Stored(len(x), targets, plain=torch.from_numpy(np.ascontiguousarray(x, np.float32)))
    if np.issubdtype(x.dtype, np.integer):
        if x.ndim >= 3 and x.dtype.itemsize == 2:
            raise InputError(f"{source}: x is {x.dtype} {list(x.shape)}; convert deep images to uint8 or to float32")
        return Stored(len(x), targets, plain=torch.from_numpy(np.ascontiguousarray(x, np.int64)))
    raise InputError(f"{source}: x must be {_KINDS}; got {x.dtype} {list(x.shape)}")


def _images(x: NDArray[Any], targets: Tensor | None, source: str) -> Stored:
    channels_first = x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[3] not in (1, 3, 4)
    if x.ndim not in (3, 4) or channels_first:
        hint = "; channels go last" if channels_first else ""
        raise InputError(f"{source}: x must be {_KINDS}; got uint8 {list(x.shape)}{hint}")
    pixels = x if x.ndim == 4 else x[..., None]
    size = int(pixels.shape[1]), int(pixels.shape[2])
    return Stored(len(x), targets, lambda i: np.asarray(pixels[i]), size, int(pixels.shape[3]))


def _targets(y: Any, count: int, source: str) -> Tensor:
    y = _array(y, f"{source}: y")
    if y.shape[:1] != (count,) or not (np.issubdtype(y.dtype, np.number) or y.dtype == np.bool_):
        raise InputError(f"{source}: y must be numbers, one entry for each of {count} samples; got {y.dtype} {y.shape}")
    floating = np.issubdtype(y.dtype, np.floating)
    if floating and np.isnan(y).any():
        raise InputError(f"{source}: y has NaN values")
    return torch.from_numpy(np.ascontiguousarray(y, np.float32 if floating else np.int64))


def _array(values: Any, what: str) -> NDArray[Any]:
    try:
        return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} is no array ({error})") from error
