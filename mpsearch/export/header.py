"""Reading a packed file: everything its header says is checked before memory is taken for it, and then its digest."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel import FLOAT_BITS, BitConfig, InputError, Precision
from hwmodel.json_text import parse_json
from hwmodel.precision import CODED_BITS, is_rate
from hwmodel.size import FORMAT, HEADER_LENGTH_BYTES, VALUE_BYTES

METADATA = "__metadata__"
MOST_HEADER_BYTES = 2**24
_UNHASHED = ("digest", "padding")
_FIELDS = ("digest", "format", "input", "integers", "layers", "model")
ARRAYS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "U8": np.dtype("u1")}
_LAYER = re.compile(
    r"(?P<name>.+):(?:(?P<w>[2-8])|r(?P<rate>[0-8](?:\.[0-9]{1,3})?))(?:/(?P<a>[2-8]))?"
    r":(?P<shape>[0-9]{1,9}(?:x[0-9]{1,9})*)",
    re.ASCII | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class PackedFile:
    """What a packed file holds, undamaged by its digest: its fields, the bits and the shape of the codes of every
    layer, and its tensors by name, which have their `entries` in the header."""

    path: Path
    fields: dict[str, str]
    config: BitConfig
    shapes: dict[str, tuple[int, ...]]
    entries: dict[str, dict[str, Any]]
    tensors: dict[str, NDArray[Any]]

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read_packed(path: Path) -> PackedFile:
    """Reads a packed file. Raises InputError where it is missing, damaged or something else."""
    if not path.is_file():
        raise InputError(f"no packed model at {path}: expected a model-*.safetensors file of a run folder")
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
            left = size - HEADER_LENGTH_BYTES - length
            if left < 0 or length > MOST_HEADER_BYTES:
                raise _damaged(path, f"its header has {length:,} bytes, the file {size:,}")
            header = _header(path, file.read(length))
            fields = _fields(path, header.pop(METADATA, None))
            _check_entries(path, header, left)
            data = bytearray(left)
            if file.readinto(data) != left:
                raise _damaged(path, "it is cut off")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    if file_digest({METADATA: fields, **header}, (data,)) != fields["digest"]:
        raise _damaged(path, "its digest is another one")
    config, shapes = _layers(path, fields["layers"])
    tensors = {name: _array(data, entry) for name, entry in header.items()}
    return PackedFile(path, fields, config, shapes, header, tensors)


def file_digest(header: Mapping[str, Any], data: Iterable[bytes | bytearray]) -> str:
    """The digest, 16 hexadecimal digits, of a header, whatever its padding, and of the data behind it."""
    fields = {key: value for key, value in header[METADATA].items() if key not in _UNHASHED}
    hashed = hashlib.blake2b(json.dumps({**header, METADATA: fields}, sort_keys=True).encode(), digest_size=8)
    for part in data:
        hashed.update(part)
    return hashed.hexdigest()


def shown(value: object, most: int = 80) -> str:
    """A value as a message shows it: on one line, and no longer than `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged or not a packed model ({reason}); write it again")


def _header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = parse_json(text.decode())
    except ValueError:
        raise _damaged(path, "its header is no JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no object")
    return header


def _fields(path: Path, fields: Any) -> dict[str, str]:
    form = fields.get("format") if isinstance(fields, dict) else None
    if form != FORMAT:
        raise InputError(f"{path} is not a packed model: expected format {FORMAT!r}, got {shown(form)}")
    if not all(isinstance(value, str) for value in fields.values()):
        raise _damaged(path, "a field is no text")
    missing = [name for name in _FIELDS if name not in fields]
    if missing:
        raise _damaged(path, f"it has no field {missing[0]!r}")
    return dict(fields)


def _check_entries(path: Path, entries: Mapping[str, Any], data_bytes: int) -> None:
    """Tensors lie one behind the other and fill the file. Raises InputError otherwise."""
    at = 0
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise _damaged(path, f"what it says of tensor {shown(name)}")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in VALUE_BYTES if isinstance(dtype, str) else True:
            raise _damaged(path, f"tensor {shown(name)} is of another type than {', '.join(VALUE_BYTES)}")
        if not (_sizes(shape) and _sizes(offsets)) or len(offsets) != 2:
            raise _damaged(path, f"shape or place of tensor {shown(name)}")
        end = at + math.prod(shape) * VALUE_BYTES[dtype]
        if offsets != [at, end] or end > data_bytes:
            raise _damaged(path, f"tensor {shown(name)} does not lie behind the one before it, in the file")
        at = end
    if at != data_bytes:
        raise _damaged(path, f"its tensors have {at:,} bytes, the file {data_bytes:,} for them")


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= 16 and all(type(v) is int and 0 <= v < 2**48 for v in values)


def _layers(path: Path, text: str) -> tuple[BitConfig, dict[str, tuple[int, ...]]]:
    """The bits and the shapes of all layers, the inverse of `hwmodel.size.layer_entry`."""
    shapes: dict[str, tuple[int, ...]] = {}
    precisions = []
    for entry in text.split(" "):
        found = _LAYER.fullmatch(entry)
        if found is None:
            raise _damaged(path, f"layer {shown(entry)}")
        name = found["name"].replace("%20", " ").replace("%25", "%")
        if name in shapes:
            raise _damaged(path, f"layer {shown(name)} is there twice")
        rate = float(found["rate"] or 0)
        if found["rate"] and not is_rate(rate):
            raise _damaged(path, f"rate of layer {shown(name)}")
        shapes[name] = tuple(map(int, found["shape"].split("x")))
        precisions.append(Precision(int(found["w"] or CODED_BITS), int(found["a"] or FLOAT_BITS), rate))
    return BitConfig(tuple(shapes), tuple(precisions)), shapes


def _array(data: bytearray, entry: Mapping[str, Any]) -> NDArray[Any]:
    start, _ = entry["data_offsets"]
    shape = tuple(entry["shape"])
    flat: NDArray[Any] = np.frombuffer(data, ARRAYS[entry["dtype"]], math.prod(shape), start)
    return flat.reshape(shape)
