"""Bit assignments as other tools write them, read from JSON: HAWQ, AIMET, NNCF, and plain mappings such as MCT's.

Nothing of them is run. What a file says of activations is taken where it belongs to the input of a layer; of other
tensors it is counted and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwmodel import FLOAT_BITS, InputError, Precision

OF_TOOLS = {"compression", "bitwidth_per_scope", "param_encodings", "encodings"}
NNCF_DEFAULT = 8  # of weights, where its configuration says nothing


@dataclass(frozen=True, slots=True)
class ForeignBits:
    """Bits by the tool's own names of layers, in the order of the file.

    `default` is what layers have that are not named, None where all have to be; `left_out` counts the entries that are
    about other tensors than weights and inputs of layers. `in_order` says that the file has the layers as they are run.
    """

    tool: str
    bits: dict[str, Precision]
    default: Precision | None = None
    left_out: int = 0
    in_order: bool = False


def read_foreign(data: Any) -> ForeignBits:
    """Finds out whose the parsed JSON is and reads it. Raises InputError, TypeError or ValueError for anything else."""
    while isinstance(data, dict) and len(data) == 1 and not OF_TOOLS & set(data):
        inside = next(iter(data.values()))
        if not isinstance(inside, dict) or _is_pair(inside):
            break
        data = inside
    if not isinstance(data, dict) or not data:
        raise InputError("expected an object with a value for every layer")
    if "param_encodings" in data or "encodings" in data:
        return _aimet(data)
    scopes = _nncf_scopes(data)
    if scopes is not None:
        return scopes
    if any(re.search(r"(^|\.)quant_(input|act|\w*convbn)", name) for name in data):
        return _hawq(data)
    if all(isinstance(value, dict) for value in data.values()) and not any(map(_is_pair, data.values())):
        raise InputError(f"it holds {len(data)} assignments ({', '.join(list(data)[:3])}, …): keep one of them")
    return ForeignBits("plain", {name: _named(name, value) for name, value in data.items()})


def _named(name: str, value: Any) -> Precision:
    try:
        return _precision(value)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _precision(value: Any) -> Precision:
    """`4`, "W4A8", [4, 8] or {"weight_bits": 4, "activation_bits": 8}."""
    if isinstance(value, str):
        return Precision.parse(value)
    if isinstance(value, list) and len(value) == 2:
        return Precision(_bits(value[0]), _bits(value[1]))
    if _is_pair(value):
        return Precision(_bits(value["weight_bits"]), _bits(value.get("activation_bits", FLOAT_BITS)))
    return Precision(_bits(value))


def _is_pair(value: Any) -> bool:
    return isinstance(value, dict) and "weight_bits" in value and set(value) <= {"weight_bits", "activation_bits"}


def _bits(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"bits are whole numbers, got {value!r}")
    return value


def _hawq(data: Mapping[str, Any]) -> ForeignBits:
    """HAWQ's `bit_config` (https://github.com/Zhen-Dong/HAWQ): quantizers in the order of the network.

    Those of activations stand before the layers that read them; a shortcut reads what its unit reads. Layers are called
    `quant_convbn1` in its residual networks and `conv1` in its MobileNets. A value may be a pair, bits and how they are
    set.
    """
    bits: dict[str, Precision] = {}
    inputs: dict[str, int] = {}  # by unit, what enters it
    before, left_out = FLOAT_BITS, 0
    for name, value in data.items():
        unit, _, word = name.rpartition(".")
        width = _bits(value[0] if isinstance(value, list) and value else value)
        layer = f"{unit}.{word.removeprefix('quant_').replace('convbn', 'conv')}".lstrip(".")
        if "int32" in word or any(name.startswith(f"{known}.") for known in bits):  # or a part of a layer
            left_out += 1
        elif re.fullmatch(r"quant_(input|act\w*)", word):
            before = width
            inputs.setdefault(unit, width)
        else:
            bits[layer] = Precision(width, inputs.get(unit, before) if "identity" in word else before)
    return ForeignBits("HAWQ", bits, left_out=left_out, in_order=True)


def _aimet(data: Mapping[str, Any]) -> ForeignBits:
    """AIMET's and QNN's encodings 0.6.1, 1.0.0, 2.0.0 and 2.1.0 (AIMET's Encoding Format Specification)."""
    weights: dict[str, int] = {}
    listed = data["encodings"] if "encodings" in data else data["param_encodings"]
    activations = data.get("activation_encodings", {})
    entries = listed.items() if isinstance(listed, dict) else [(str(one["name"]), one) for one in listed]
    left_out = 0
    for name, one in entries:
        layer = name.removesuffix(".weight")
        if layer == name:
            left_out += 1
        else:
            weights[layer] = _width(one)
    reads: dict[str, int] = {}
    if isinstance(activations, dict):  # of aimet-torch, by layer; lists are by tensor of the ONNX graph
        for layer, places in activations.items():
            first = places.get("input", {}).get("0") if isinstance(places, dict) else None
            if first is None:
                left_out += 1
            else:
                reads[layer] = _width(first)
    else:
        left_out += len(activations)
    bits = {layer: Precision(width, reads.get(layer, FLOAT_BITS)) for layer, width in weights.items()}
    return ForeignBits("AIMET", bits, left_out=left_out)


def _width(encoding: Any) -> int:
    """The bits of an encoding of any version; a list has one for each channel, all alike."""
    if isinstance(encoding, list):
        widths = {_width(one) for one in encoding}
        if len(widths) != 1:
            raise InputError(f"channels of one tensor have {sorted(widths)} bits; one width for each layer is wanted")
        return widths.pop()
    if "output_dtype" in encoding:
        kind = re.fullmatch(r"u?int(\d+)", str(encoding["output_dtype"]))
        if kind is None:
            raise InputError(f"an encoding of type {encoding['output_dtype']!r} has no bits of integers")
        return int(kind[1])
    return _bits(encoding["bw"] if "bw" in encoding else encoding["bitwidth"])


def _nncf_scopes(data: Mapping[str, Any]) -> ForeignBits | None:
    """NNCF's `bitwidth_per_scope`, alone or in its configuration; None where there is none.

    Scopes are names of quantizers such as `Net/Sequential[features]/NNCFConv2d[0]/conv2d_0|WEIGHT`. Weights that are
    not named have the bits that the configuration has for all.
    """
    compression = data.get("compression", data)
    parts = compression if isinstance(compression, list) else [compression]
    part = next((one for one in parts if isinstance(one, dict) and _scopes(one) is not None), None)
    if part is None:
        return None
    bits: dict[str, Precision] = {}
    left_out = 0
    for width, scope in _scopes(part) or ():
        if re.search(r"\|(OUTPUT|INPUT)|POST_HOOK|^ModuleDict", scope) or "NNCF" not in scope:
            left_out += 1
        else:
            bits[".".join(re.findall(r"\[([^\[\]]+)\]", scope.partition("/ModuleDict")[0]))] = Precision(_bits(width))
    default = Precision(_bits(part.get("weights", {}).get("bits", NNCF_DEFAULT)))
    return ForeignBits("NNCF", bits, default, left_out)


def _scopes(part: Mapping[str, Any]) -> Any:
    if "bitwidth_per_scope" in part:
        return part["bitwidth_per_scope"]
    initializer = part.get("initializer")
    return initializer.get("precision", {}).get("bitwidth_per_scope") if isinstance(initializer, dict) else None
