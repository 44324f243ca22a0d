"""The packed model file: weights at their real bit-width, written and read back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hwmodel import BitConfig, InputError, LayerTable, Precision
from hwmodel.size import ALIGNMENT, FORMAT, HEADER_LENGTH_BYTES, PackedLayout, packed_bytes, zero_point_bits
from mpsearch.sources.models import build_architecture
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.quantizers.inputs import InputGrid
from recon.quantizers.quantized import QuantizedLayers, input_bits, quantized
from recon.quantizers.weights import Grid, QuantizedWeight


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes (n,), each below 2^bits, as bytes (ceil(n·bits/8),): little-endian, without gaps."""
    planes = (codes[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.astype(np.uint8).ravel(), bitorder="little")


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The inverse of `pack`: `count` codes."""
    planes = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    weights = np.left_shift(1, np.arange(bits), dtype=np.int64)
    return np.asarray(planes @ weights, np.uint8)


def layout_of(network: Network, reference: str, inputs: bool = False) -> PackedLayout:
    """The layout of the packed files of a traced network that `reference` can rebuild; `inputs` says whether inputs of
    layers may be quantized."""
    kept = tuple((name, tuple(tensor.shape)) for name, tensor in others(network).items())
    return PackedLayout(reference, network.table, kept, inputs)


def others(network: Network) -> dict[str, Tensor]:
    """Parameters and buffers that no quantized layer holds, by name: they are stored in half precision."""
    held = {part.data_ptr() for name in network.table.names for part in network.layer(name).parameters(recurse=False)}
    state = network.module.state_dict()
    return {name: t for name, t in state.items() if t.is_floating_point() and t.numel() and t.data_ptr() not in held}


def save_packed(path: Path, network: Network, reference: str, layers: QuantizedLayers) -> int:
    """Writes the low-bit model; the number of bytes written, which `hwmodel.size` predicts exactly.

    Raises InputError where a part that stays in half precision overflows it.
    """
    names = network.table.names
    config = layers.config(names)
    layout = layout_of(network, reference, bool(layers.inputs))
    weights = [layers.weights[name] for name in names]
    inputs = [layers.inputs[name] for name in names if name in layers.inputs]
    codes = [pack(weight.codes.cpu().numpy().ravel(), weight.grid.bits) for weight in weights]
    zeros = [_pack_zero_points(weight.grid) for weight in weights]
    tensors: dict[str, NDArray[np.generic]] = {
        "biases": np.concatenate([layers.biases[name].cpu().numpy() for name in names]).astype(np.float16),
        "codes": np.concatenate(codes),
        "scales": np.concatenate([weight.grid.scale.cpu().numpy() for weight in weights]).astype(np.float16),
        "zero_points": np.concatenate(zeros),
        "input_scales": np.array([grid.scale for grid in inputs], np.float16),
        "input_zero_points": np.array([grid.zero_point for grid in inputs], np.uint8),
    }
    for name, tensor in others(network).items():
        half = tensor.detach().cpu().half()
        if not torch.equal(torch.isfinite(half), torch.isfinite(tensor.cpu())):
            raise InputError(f"{name!r} is not quantized and too large for half precision (65504 at most)")
        tensors[f"other.{name}"] = half.numpy()
    header = layout.header(config, layout.padding(config))
    header += b" " * (-len(header) % ALIGNMENT)
    temporary = path.with_suffix(".tmp")
    # By hand: the library writes the header's text fields in another order each time.
    with temporary.open("wb") as file:
        file.write(len(header).to_bytes(HEADER_LENGTH_BYTES, "little") + header)
        for name in layout.tensors(config):
            file.write(tensors[name].tobytes())
    temporary.replace(path)
    return path.stat().st_size


def load_packed(path: Path | str) -> nn.Module:
    """The low-bit model in a packed file, as a torch module in eval mode with float32 arithmetic.

    Its outputs are those of the model that was written. The architecture is built from the reference in the file: for
    `file.py:factory` that file must still be there. Raises InputError where the file is missing, damaged, or not a
    packed model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no packed model at {path}: expected a model-*.safetensors file of a run folder")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or not a safetensors file ({error}); write it again") from None
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is not a packed model: expected format {FORMAT!r}, got {metadata.get('format')!r}")
    shapes = [tuple(map(int, text.split("x"))) for text in metadata["input"].split(" ")]
    network = capture(build_architecture(metadata["model"]), Samples.noise(*shapes), metadata["model"])
    config = _read_config(metadata["layers"])
    layout = layout_of(network, metadata["model"], "input_scales" in tensors)
    expected = layout.tensors(config) if config.layers == network.table.names else {}
    if {name: shape for name, (_, shape) in expected.items()} != {name: t.shape for name, t in tensors.items()}:
        raise InputError(f"{path} does not fit {metadata['model']}: its layers differ from the traced ones")
    sizes = [layer.n_biases for layer in network.table]
    parts = torch.split(torch.from_numpy(tensors["biases"]).float(), sizes)
    biases = dict(zip(network.table.names, parts, strict=True))
    weights = _read_weights(network.table, network, config, tensors)
    result = quantized(network, QuantizedLayers(weights, biases, _read_inputs(config, tensors)))
    for name, tensor in others(result).items():
        tensor.copy_(torch.from_numpy(tensors[f"other.{name}"]))
    return result.model


def _read_config(text: str) -> BitConfig:
    entries = [entry.rsplit(":", 1) for entry in text.split(" ")]
    return BitConfig(
        tuple(name for name, _ in entries), tuple(Precision(*map(int, bits.split("/"))) for _, bits in entries)
    )


def _read_inputs(config: BitConfig, tensors: Mapping[str, NDArray[np.generic]]) -> dict[str, InputGrid]:
    bits = input_bits(config)  # of embeddings, which read ids, the file says that inputs are float
    if not bits:
        return {}
    scales, zeros = tensors["input_scales"].tolist(), tensors["input_zero_points"].tolist()
    return {name: InputGrid(bits[name], *grid) for name, *grid in zip(bits, scales, zeros, strict=True)}


def _pack_zero_points(grid: Grid) -> NDArray[np.uint8]:
    width = zero_point_bits(grid.bits)
    return pack((grid.zero_point * 2 ** (width - grid.bits)).cpu().numpy().astype(np.uint8), width)


def _split(values: Tensor, table: LayerTable) -> dict[str, Tensor]:
    parts = torch.split(values, [layer.out_channels for layer in table])
    return dict(zip(table.names, parts, strict=True))


def _read_weights(
    table: LayerTable, network: Network, config: BitConfig, tensors: Mapping[str, NDArray[np.generic]]
) -> dict[str, QuantizedWeight]:
    scales = _split(torch.from_numpy(tensors["scales"]).float(), table)
    code_bytes, zero_bytes = tensors["codes"].astype(np.uint8), tensors["zero_points"].astype(np.uint8)
    weights: dict[str, QuantizedWeight] = {}
    code_start = zero_start = 0
    for layer, precision in zip(table, config.precisions, strict=True):
        bits = precision.w
        code_end = code_start + packed_bytes(layer.n_weights, bits)
        width = zero_point_bits(bits)
        zero_end = zero_start + packed_bytes(layer.out_channels, width)
        codes = torch.from_numpy(unpack(code_bytes[code_start:code_end], bits, layer.n_weights))
        counted = torch.from_numpy(unpack(zero_bytes[zero_start:zero_end], width, layer.out_channels))
        zeros = counted.float() / 2 ** (width - bits)
        shape = network.layer(layer.name).weight.shape
        weights[layer.name] = QuantizedWeight(Grid(bits, scales[layer.name], zeros), codes.view(shape))
        code_start, zero_start = code_end, zero_end
    return weights
