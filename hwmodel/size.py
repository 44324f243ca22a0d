"""The bytes of a packed model file, exactly, without writing it.

A packed file is a safetensors file: 8 bytes of header length, a JSON header, then the data. The data of a layer are its
codes at their bit-width, and per output channel a half-precision scale, a zero-point at the codes' width (with one bit
more where it counts halves) and a half-precision bias; where its inputs are quantized, a half-precision scale and a
zero-point of one byte for them, and four bits for each channel that has a step of its own. Parts that are not quantized
are stored in half precision, or in single precision where they exceed its range. The header is filled up to the longest
that any configuration of the network can need, so that a file's size is a sum over layers.

Where codes are entropy-coded, their bytes are known when they are coded: what is said here of a rate is about what it
will be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwmodel.cost import CostTable
from hwmodel.filesize import FORMS, PACKED
from hwmodel.layer import LayerSpec, LayerTable
from hwmodel.precision import FLOAT_BITS, HALVED_BITS, HALVING_BITS, WEIGHT_BITS, BitConfig, Precision

HALF_BYTES = 2
HEADER_LENGTH_BYTES = 8
ALIGNMENT = 8  # safetensors pads its header to this
FORMAT = "mpsearch-packed-4"
CODED = "coded"  # the tensor of the entropy-coded layers
HALVINGS = "input_halvings"  # the tensor of how often each channel's step is half of the scale of a layer's inputs
CHANNEL_BYTES = 2  # about: scale and bias of an output channel of an entropy-coded layer
STREAM_BYTES = 16  # at most: the end of the stream of entropy-coded codes
VALUE_BYTES = {"F32": 4, "F16": HALF_BYTES, "U8": 1}
_LONGEST_RATE, _MOST_CODED = 2.125, 10**12  # what makes a header longest
NO_DIGEST = "0" * 16  # 64 bits in hexadecimal: as long as any digest


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes packed without gaps at `bits` bits each."""
    return -(-count * bits // 8)


def zero_point_bits(bits: int) -> int:
    """Bits of a stored zero-point of weights: those of the codes, and one more where it counts halves."""
    return bits + (bits <= HALVED_BITS)


def layer_bytes(layer: LayerSpec, precision: Precision) -> int:
    """Bytes of one layer's data: codes, scales, zero-points and biases, and the grid of its inputs."""
    channels, bits = layer.out_channels, precision.w
    inputs = input_bytes(layer, precision)
    if precision.rate:
        return math.ceil(layer.n_weights * precision.rate / 8) + CHANNEL_BYTES * channels + inputs
    zero_points = packed_bytes(channels, zero_point_bits(bits))
    return packed_bytes(layer.n_weights, bits) + zero_points + HALF_BYTES * (channels + layer.n_biases) + inputs


def input_bytes(layer: LayerSpec, precision: Precision) -> int:
    """Bytes of the grid of a layer's inputs: none where they are not quantized."""
    return HALF_BYTES + 1 + halving_bytes(layer) if quantized_inputs(layer, precision) else 0


def halving_bytes(layer: LayerSpec) -> int:
    """Bytes of what every channel's step is, where a layer's inputs are quantized and have one for each."""
    return packed_bytes(layer.in_channels, HALVING_BITS) if layer.channel_steps else 0


def quantized_inputs(layer: LayerSpec, precision: Precision) -> bool:
    """The layer's inputs have a grid: an embedding reads ids, which are not quantized."""
    return precision.a != FLOAT_BITS and layer.kind != "embedding"


@dataclass(frozen=True, slots=True)
class Other:
    """A tensor that no quantized layer holds: its `dtype` in the file is F16, or F32 where F16 overflows."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Digests:
    """What damage and a wrong model are told by: 16 hexadecimal digits each, of the file itself and of the network's
    integer tensors, which the file does not hold."""

    file: str = NO_DIGEST
    integers: str = NO_DIGEST


UNKNOWN = Digests()


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """What determines a packed file's header: the name of the model, the structure of its `call`, its layers, `others`,
    the tensors that are not quantized, and whether inputs of layers may be quantized. `coded` are the bytes of layers
    that are entropy-coded, 0 while they are not known, None where all codes are stored at their width.

    `reference` is a name without a path, so that the size does not depend on where the model's code lies.
    """

    reference: str
    call: str
    table: LayerTable
    others: tuple[Other, ...] = ()
    inputs: bool = False
    coded: int | None = None

    def header_bytes(self) -> int:
        """The header of every packed file of this model, its length field included."""
        widest = max(WEIGHT_BITS)
        most = Precision(widest, widest if self.inputs else FLOAT_BITS, 0.0 if self.coded is None else _LONGEST_RATE)
        layout = self if self.coded is None else replace(self, coded=_MOST_CODED)
        return HEADER_LENGTH_BYTES + _aligned(len(layout.header(BitConfig.uniform(self.table.names, most), "")))

    def header(self, config: BitConfig, padding: str, digests: Digests = UNKNOWN) -> bytes:
        """The JSON header of a configuration's file, before the format's own padding to 8 bytes."""
        return as_json({"__metadata__": self.metadata(config, padding, digests), **self.entries(config)})

    def entries(self, config: BitConfig) -> dict[str, dict[str, object]]:
        """Data type, shape and place of every tensor, in the order of the file."""
        entries: dict[str, dict[str, object]] = {}
        start = 0
        for name, (dtype, shape) in self.tensors(config).items():
            end = start + math.prod(shape) * VALUE_BYTES[dtype]
            entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
            start = end
        return entries

    def metadata(self, config: BitConfig, padding: str, digests: Digests) -> dict[str, str]:
        """The header's text fields, in the order of their keys. `layers` has an entry for each layer, by
        `layer_entry`, with spaces between them."""
        return {
            "digest": digests.file,
            "format": FORMAT,
            "input": self.call,
            "integers": digests.integers,
            "layers": " ".join(map(layer_entry, self.table, config.precisions)),
            "model": self.reference,
            "padding": padding,
        }

    def padding(self, config: BitConfig) -> str:
        """The filling that makes the header as long as the longest."""
        longest = self.header_bytes() - HEADER_LENGTH_BYTES
        return " " * (longest - len(self.header(config, "")))

    def tensors(self, config: BitConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Data type and shape of every tensor, in the order of the file: wider types first, then by name."""
        pairs = list(zip(self.table, config.precisions, strict=True))
        layers = [(layer, precision.w) for layer, precision in pairs if not precision.rate]
        zero_points = sum(packed_bytes(layer.out_channels, zero_point_bits(bits)) for layer, bits in layers)
        channels = sum(layer.out_channels for layer, _ in layers)
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {
            "biases": ("F16", (sum(layer.n_biases for layer, _ in layers),)),
            "codes": ("U8", (sum(packed_bytes(layer.n_weights, bits) for layer, bits in layers),)),
            "scales": ("F16", (channels,)),
            "zero_points": ("U8", (zero_points,)),
        }
        inputs = sum(map(quantized_inputs, self.table, config.precisions))
        if inputs:
            tensors |= {"input_scales": ("F16", (inputs,)), "input_zero_points": ("U8", (inputs,))}
            halvings = sum(halving_bytes(layer) for layer, precision in pairs if quantized_inputs(layer, precision))
            tensors |= {HALVINGS: ("U8", (halvings,))} if halvings else {}
        if self.coded is not None:
            tensors[CODED] = ("U8", (self.coded,))
        tensors |= {f"other.{other.name}": (other.dtype, other.shape) for other in self.others}
        return dict(sorted(tensors.items(), key=lambda item: (-VALUE_BYTES[item[1][0]], item[0])))

    def fixed_bytes(self) -> int:
        """Bytes that do not depend on the bits: the header, the parts that are not quantized, the end of a stream."""
        end = 0 if self.coded is None else STREAM_BYTES
        return self.header_bytes() + sum(size for _, size in self.float_bytes()) + end

    def float_bytes(self) -> list[tuple[str, int]]:
        """The tensors that no quantized layer holds, with their bytes."""
        return [(other.name, VALUE_BYTES[other.dtype] * math.prod(other.shape)) for other in self.others]

    def file_bytes(self, config: BitConfig) -> int:
        """The size of the packed file of `config`."""
        layers = sum(
            layer_bytes(layer, precision) for layer, precision in zip(self.table, config.precisions, strict=True)
        )
        return self.fixed_bytes() + layers


def layer_entry(layer: LayerSpec, precision: Precision) -> str:
    """What a header says of a layer: NAME:W:SHAPE, or NAME:W/A:SHAPE where its inputs are quantized: 3.0:4/8:64x3x7x7.
    Where it is entropy-coded, W is r and its rate: 3.0:r2.5:64x3x7x7.

    Spaces in the name are written %20, and % is written %25.
    """
    bits = replace(precision, a=precision.a if quantized_inputs(layer, precision) else FLOAT_BITS)
    shape = "x".join(map(str, code_shape(layer)))
    return f"{layer.name.replace('%', '%25').replace(' ', '%20')}:{bits.short}:{shape}"


def code_shape(layer: LayerSpec) -> tuple[int, ...]:
    """The shape of a layer's codes: (output channels, input channels of a group, height, width), without height and
    width where the kernel has one weight."""
    kernel = () if layer.kernel == (1, 1) else layer.kernel
    return layer.out_channels, layer.in_channels // layer.groups, *kernel


def as_json(value: object) -> bytes:
    """JSON as short as it gets, in UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def weights_only_bytes(table: LayerTable, wbits: Sequence[float]) -> float:
    """The papers' figure: bits of the weight codes alone, over 8; no scales, biases or header."""
    return sum(layer.n_weights * bits for layer, bits in zip(table, wbits, strict=True)) / 8


def bops(layer: LayerSpec, precision: Precision) -> float:
    """Bit operations: MACs × weight bits × activation bits (as counted by HAWQ-V3, arXiv 2011.10680)."""
    return float(layer.macs * precision.w * precision.a)


def cost_table(
    table: LayerTable, precisions: Sequence[Precision], fixed_bytes: int, size_of: str = PACKED
) -> CostTable:
    """Sizes and bit operations of every layer at every candidate precision, arrays (L, C).

    `size_of` is the file whose size it is, and `fixed_bytes` what that has beside the layers.
    """
    bytes_of = layer_bytes if size_of == PACKED else FORMS[size_of].layer_bytes
    size = [[bytes_of(layer, precision) for precision in precisions] for layer in table]
    codes = [[round(layer.n_weights * precision.stored) for precision in precisions] for layer in table]
    operations = [[bops(layer, precision) for precision in precisions] for layer in table]
    return CostTable(
        table.names,
        tuple(precisions),
        np.array(size, np.int64),
        np.array(codes, np.int64),
        np.array(operations, np.float64),
        fixed_bytes,
        size_of,
    )
