"""The packed model file: weights at their real bit-width, written and read back.

What a file holds is what the network's calls read: the codes, grids and biases of its layers, and its other floating
point parameters and buffers, in half precision or, where they overflow it, in single. What no call reads is not stored.
Integer buffers and the constants of the code are those of the architecture; that integers are the same is checked.
"""

from __future__ import annotations

import hashlib
import json
import operator
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwmodel import InputError, LayerSpec, LayerTable
from hwmodel.files import write_whole
from hwmodel.precision import CODED_BITS, HALVING_BITS
from hwmodel.size import (
    ALIGNMENT,
    CODED,
    HALVINGS,
    HEADER_LENGTH_BYTES,
    Digests,
    Other,
    PackedLayout,
    code_shape,
    halving_bytes,
    layer_entry,
    packed_bytes,
    quantized_inputs,
    zero_point_bits,
)
from mpsearch.export.call import call_text, example
from mpsearch.export.coded import CodedLayer, decode, encode
from mpsearch.export.codes import pack, unpack
from mpsearch.export.header import ARRAYS, PackedFile, file_digest, read_packed, shown
from mpsearch.export.reference import built, portable
from mpsearch.sources.detectors import neural_part
from recon.graph.network import Network, capture
from recon.quantizers.coded import ZERO
from recon.quantizers.inputs import InputGrid
from recon.quantizers.quantized import QuantizedLayers, quantized
from recon.quantizers.weights import Grid, QuantizedWeight

_VALUES_A_BYTE = 8  # of a model to build: twice what 2-bit codes need
_BUILT_ANYWAY = 2**20  # parameters that nobody finds too many
_CONSTANT = re.compile(r"(.*\.)?lifted_tensor_\d+")


def layout_of(network: Network, reference: str, inputs: bool = False, coded: int | None = None) -> PackedLayout:
    """The layout of the packed files of a captured network.

    Of `reference`, what the model is called or built by, the name is kept without a path. `inputs` says whether inputs
    of layers may be quantized; `coded` is as in the layout. Raises InputError where the network is called with anything
    but tuples, lists, dicts.
    """
    kept = tuple(Other(name, _dtype(tensor), tuple(tensor.shape)) for name, tensor in others(network).items())
    return PackedLayout(portable(reference), call_text(network), network.table, kept, inputs, coded)


def others(network: Network) -> dict[str, Tensor]:
    """Floating point parameters and buffers that calls read and no quantized layer holds, by name."""
    return {name: tensor for name, tensor in _read(network) if tensor.is_floating_point() and tensor.numel()}


def _read(network: Network) -> Iterator[tuple[str, Tensor]]:
    """The tensors that the graph reads by name, those of layers and constants of the code not among them."""
    names = dict.fromkeys(str(node.target) for node in network.module.graph.nodes if node.op == "get_attr")
    for name in sorted(names):
        if not _CONSTANT.fullmatch(name):
            yield name, operator.attrgetter(name)(network.module)


def _dtype(tensor: Tensor) -> str:
    """F16, or F32 where values that are finite would not be so."""
    return "F16" if torch.equal(torch.isfinite(tensor.half()), torch.isfinite(tensor)) else "F32"


def _integers(network: Network) -> str:
    """A digest of the integer tensors that the graph reads."""
    hashed = hashlib.blake2b(digest_size=8)
    for name, tensor in _read(network):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            hashed.update(tensor.cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()


def save_packed(path: Path, network: Network, reference: str, layers: QuantizedLayers) -> int:
    """Writes the low-bit model; the number of bytes written, which `hwmodel.size` predicts exactly where no layer is
    entropy-coded."""
    names = network.table.names
    config = layers.config(names)
    coded = _coded(network.table, layers)
    layout = layout_of(network, reference, bool(layers.inputs), None if coded is None else len(coded))
    plain = [name for name in names if not layers.weights[name].grid.rate]
    weights = [layers.weights[name] for name in plain]
    inputs = [layers.inputs[name] for name in names if name in layers.inputs]
    tensors: dict[str, NDArray[Any]] = {
        CODED: np.frombuffer(coded or b"", np.uint8),
        "biases": _half([layers.biases[name] for name in plain]),
        "codes": _joined([pack(weight.codes.cpu().numpy().ravel(), weight.grid.bits) for weight in weights]),
        "scales": _half([weight.grid.scale for weight in weights]),
        "zero_points": _joined([_pack_zero_points(weight.grid) for weight in weights]),
        "input_scales": np.array([grid.scale for grid in inputs], "<f2"),
        "input_zero_points": np.array([grid.zero_point for grid in inputs], np.uint8),
        HALVINGS: _joined([pack(np.array(grid.halvings, np.uint8), HALVING_BITS) for grid in inputs if grid.halvings]),
    }
    values = others(network)
    for other in layout.others:
        tensors[f"other.{other.name}"] = values[other.name].detach().cpu().numpy().astype(ARRAYS[other.dtype])
    data = [tensors[name].tobytes() for name in layout.tensors(config)]
    digests = Digests(integers=_integers(network))
    digests = Digests(file_digest(json.loads(layout.header(config, "", digests)), data), digests.integers)
    header = layout.header(config, layout.padding(config), digests)
    header += b" " * (-len(header) % ALIGNMENT)
    # By hand: the library writes the header's text fields in another order each time.
    write_whole(path, len(header).to_bytes(HEADER_LENGTH_BYTES, "little"), header, *data)
    return path.stat().st_size


def _coded(table: LayerTable, layers: QuantizedLayers) -> bytes | None:
    """The entropy-coded layers, if any."""
    found = [name for name in table.names if layers.weights[name].grid.rate]
    weights = [(layers.weights[name], layers.biases[name].cpu()) for name in found]
    parts = [CodedLayer(weight.codes.flatten(1).cpu().numpy(), weight.grid.scale, bias) for weight, bias in weights]
    return encode(parts) if parts else None


def _half(parts: Sequence[Tensor]) -> NDArray[Any]:
    return np.concatenate([part.detach().cpu().numpy() for part in parts] or [np.empty(0)]).astype("<f2")


def _joined(parts: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def _pack_zero_points(grid: Grid) -> NDArray[np.uint8]:
    width = zero_point_bits(grid.bits)
    return pack((grid.zero_point * 2 ** (width - grid.bits)).cpu().numpy().astype(np.uint8), width)


def load_packed(path: Path | str, model: nn.Module | None = None, *, allow: str | None = None) -> nn.Module:
    """The low-bit model in a packed file, as a torch module in eval mode with float32 arithmetic.

    Its arguments are those of the model that it was made from, its outputs those of the model that was written (of a
    torchvision detector: of its `neural_part`). It computes with the code of `model`, on the device of that, whose
    weights mean nothing and stay as they are. Without `model`, torchvision's architectures are built by name, and other
    code only where `allow` is the reference that the file is of, with the path that the code has here:
    `path/net.py:make` or `package.module:make`. No code is run that
    only the file names. Raises InputError where the file is missing, damaged, not a packed model, or of another model.
    """
    file = read_packed(Path(path))
    reference = file.fields["model"]
    samples = example(file.fields["input"])
    if model is None:
        model = built(reference, allow, _BUILT_ANYWAY + _VALUES_A_BYTE * file.data_bytes, file.path)
    return _filled(capture(neural_part(model), samples, reference), file).model


def fill_packed(path: Path, network: Network) -> Network:
    """The low-bit network in a packed file, by the float `network` that it was made from, which stays as it is.

    Raises InputError as `load_packed`.
    """
    return _filled(network, read_packed(path))


def read_layers(path: Path, network: Network) -> tuple[Network, QuantizedLayers]:
    """What a packed file holds, by the float `network` that it was made from: a copy of that with the file's other
    tensors, and the layers. Raises InputError as `load_packed`."""
    file = read_packed(path)
    layers = _layers(network, file)
    result = network.copy()
    _put_others(result, file)
    return result, layers


def _filled(network: Network, file: PackedFile) -> Network:
    result = quantized(network, _layers(network, file))
    _put_others(result, file)
    return result


def _put_others(network: Network, file: PackedFile) -> None:
    for name, tensor in others(network).items():
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(file.tensors[f"other.{name}"].astype(np.float32)))


def _layers(network: Network, file: PackedFile) -> QuantizedLayers:
    """The layers of a file. Raises InputError where it is of another network."""
    _require_same_layers(network, file)
    if HALVINGS not in file.tensors:  # made for a runtime without steps by channel, or with float inputs
        network = network.with_one_step()
    kept = others(network)
    found = [Other(name, _stored_type(file, name), tuple(tensor.shape)) for name, tensor in kept.items()]
    coded = len(file.tensors[CODED]) if CODED in file.tensors else None
    layout = PackedLayout(file.fields["model"], file.fields["input"], network.table, tuple(found), coded=coded)
    expected = layout.entries(file.config)
    if expected != file.entries:
        differ = [name for name in {**expected, **file.entries} if expected.get(name) != file.entries.get(name)]
        raise InputError(f"{_misfit(network, file)}: what is stored as {_some(differ)} is not what it has")
    if file.fields["integers"] != _integers(network):
        raise InputError(f"{_misfit(network, file)}: integer buffers, which the file does not hold, are others")
    weights, biases = _weights(network, file)
    return QuantizedLayers(weights, biases, _inputs(network.table, file))


def _misfit(network: Network, file: PackedFile) -> str:
    return f"{file.path} does not fit {network.table.model}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(shown, names[:3])) + more


def _require_same_layers(network: Network, file: PackedFile) -> None:
    """Raises InputError where the layers of the file are not those of the network; it says which differ."""
    ours = {layer.name: code_shape(layer) for layer in network.table}
    only_there = [name for name in file.shapes if name not in ours]
    only_here = [name for name in ours if name not in file.shapes]
    reasons = [f"it has no layer {_some(only_there)}"] if only_there else []
    reasons += [f"the file has no layer {_some(only_here)}"] if only_here else []
    for name, shape in file.shapes.items():
        if name in ours and ours[name] != shape and len(reasons) < 3:
            reasons.append(f"{shown(name)} has weights {list(ours[name])}, in the file {list(shape)}")
    if not reasons and file.config.layers != network.table.names:
        pairs = zip(file.config.layers, network.table.names, strict=True)
        moved = next(f"{shown(there)} where the network calls {shown(here)}" for there, here in pairs if there != here)
        reasons.append(f"the file has its layers in another order, {moved}")
    if not reasons and " ".join(map(layer_entry, network.table, file.config.precisions)) != file.fields["layers"]:
        reasons.append("inputs of embeddings are ids, and the file has bits for them")
    if reasons:
        raise InputError(f"{_misfit(network, file)}: {'; '.join(reasons)}")


def _stored_type(file: PackedFile, name: str) -> str:
    """The type in the file of a tensor that may be of two."""
    return "F32" if file.entries.get(f"other.{name}", {}).get("dtype") == "F32" else "F16"


def _floats(file: PackedFile, name: str, least: float = -np.inf) -> Tensor:
    """A tensor of the file in float32. Raises InputError where values are not finite, or at most `least`."""
    values = torch.from_numpy(file.tensors[name].astype(np.float32))
    if not (torch.isfinite(values) & (values > least)).all():
        raise InputError(f"{file.path} is damaged ({name} that are no numbers to compute with); write it again")
    return values


def _halvings(layers: Sequence[LayerSpec], file: PackedFile) -> list[tuple[int, ...]]:
    """How often the step of every channel of the inputs of `layers` is half of their scale."""
    found, start = [], 0
    for layer in layers:
        end = start + halving_bytes(layer)
        count = layer.in_channels if end > start else 0
        found.append(tuple(unpack(file.tensors[HALVINGS][start:end], HALVING_BITS, count).tolist()) if count else ())
        start = end
    return found


def _inputs(table: LayerTable, file: PackedFile) -> dict[str, InputGrid]:
    pairs = zip(table, file.config.precisions, strict=True)
    bits = {layer.name: precision.a for layer, precision in pairs if quantized_inputs(layer, precision)}
    if not bits:
        return {}
    scales, zeros = _floats(file, "input_scales", 0).tolist(), file.tensors["input_zero_points"].tolist()
    parts = zip(bits, scales, zeros, _halvings([layer for layer in table if layer.name in bits], file), strict=True)
    grids = {name: InputGrid(bits[name], *grid) for name, *grid in parts}
    for name, grid in grids.items():
        if grid.zero_point >= 2**grid.bits:
            raise _beyond(file, name)
    return grids


def _weights(network: Network, file: PackedFile) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
    """The weights and biases of all layers."""
    pairs = list(zip(network.table, file.config.precisions, strict=True))
    plain = [(layer, precision.w) for layer, precision in pairs if not precision.rate]
    scales = torch.split(_floats(file, "scales", 0), [layer.out_channels for layer, _ in plain])
    parts = torch.split(_floats(file, "biases"), [layer.n_biases for layer, _ in plain])
    weights, biases = _coded_weights(network, file)
    biases |= {layer.name: bias for (layer, _), bias in zip(plain, parts, strict=True)}
    code_start = zero_start = 0
    for (layer, bits), scale in zip(plain, scales, strict=True):
        width = zero_point_bits(bits)
        code_end = code_start + packed_bytes(layer.n_weights, bits)
        zero_end = zero_start + packed_bytes(layer.out_channels, width)
        unpacked = unpack(file.tensors["codes"][code_start:code_end], bits, layer.n_weights)
        codes = torch.from_numpy(unpacked.astype(np.uint8))
        counted = torch.from_numpy(unpack(file.tensors["zero_points"][zero_start:zero_end], width, layer.out_channels))
        grid = Grid(bits, scale, counted.float() / 2 ** (width - bits))
        if (grid.zero_point > grid.levels).any():
            raise _beyond(file, layer.name)
        weights[layer.name] = QuantizedWeight(grid, codes.view(network.layer(layer.name).weight.shape))
        code_start, zero_start = code_end, zero_end
    return weights, biases


def _coded_weights(network: Network, file: PackedFile) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
    """The weights and biases of the layers that are entropy-coded."""
    pairs = zip(network.table, file.config.precisions, strict=True)
    coded = [(layer, precision.rate) for layer, precision in pairs if precision.rate]
    if not coded:
        return {}, {}
    sizes = [(layer.n_weights, layer.out_channels, layer.n_biases) for layer, _ in coded]
    try:
        found = decode(file.tensors[CODED].tobytes(), sizes)
    except ValueError as error:
        raise InputError(f"{file.path} is damaged (it has {error}); write it again") from None
    weights, biases = {}, {}
    for (layer, rate), part in zip(coded, found, strict=True):
        grid = Grid(CODED_BITS, part.scale, torch.full_like(part.scale, float(ZERO)), rate)
        codes = torch.from_numpy(part.codes).view(network.layer(layer.name).weight.shape)
        weights[layer.name], biases[layer.name] = QuantizedWeight(grid, codes), part.bias
    return weights, biases


def _beyond(file: PackedFile, name: str) -> InputError:
    return InputError(
        f"{file.path} is damaged (a zero-point of layer {shown(name)} is beyond its codes); write it again"
    )
