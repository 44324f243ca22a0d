"""The bytes of exported files by format: a constant part of each network, and what every layer adds at its bits.

A layer's codes are stored at the bits that the format has, and every output channel adds a scale, a bias and more. The
constant part, the graph and what names take, is measured where the format is written (`mpsearch.export.filesize`); a
file that is shorter than what is said here is filled up, so that the size is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hwmodel.errors import InputError
from hwmodel.layer import LayerSpec
from hwmodel.precision import FLOAT_BITS, WEIGHT_BITS, Precision

PACKED = "packed"
_BYTE = 8
_UINT4, _UINT2 = dict.fromkeys((3, 4), 4), {2: 2}
_OWN = {bits: bits for bits in WEIGHT_BITS}


@dataclass(frozen=True, slots=True)
class FileForm:
    """How a format stores a layer.

    Weights of some bits are stored at the `width` of those bits, or else at 8, in units of `unit` bytes, or of eight
    codes where that is 0; where `rows`, every output channel starts a unit, and where `convolutions`, those widths are
    for convolutions alone. An output channel adds `channel` bytes, or `widened` where its codes become int8 when the
    file is loaded, which takes nodes of `nodes` bytes and `per_letter` bytes for each letter of the layer's name.
    `real` is `channel` where activations are float, None where the format has integers alone.
    """

    name: str
    title: str
    channel: int
    width: Mapping[int, int] = field(default_factory=dict)
    unit: int = 1
    rows: bool = False
    convolutions: bool = False
    widened: int | None = None
    nodes: int = 0
    per_letter: int = 0
    real: int | None = None

    def layer_bytes(self, layer: LayerSpec, precision: Precision) -> int:
        """Bytes of one layer. Raises InputError where the format has no float activations."""
        if precision.a == FLOAT_BITS and self.real is None:
            raise InputError(
                f"--size-of {self.name} needs quantized activations, got {precision}; ask for them with --abits 8"
            )
        narrow = precision.w in self.width and not (self.convolutions and layer.kind != "conv")
        bits = self.width[precision.w] if narrow else _BYTE
        if self.rows:
            codes = layer.out_channels * _units(layer.n_weights // layer.out_channels * bits, self.unit or bits)
        else:
            codes = _units(layer.n_weights * bits, self.unit or bits)
        if precision.a == FLOAT_BITS and self.real is not None:
            return codes + self.real * layer.out_channels
        if not narrow or self.widened is None:
            return codes + self.channel * layer.out_channels
        return codes + self.widened * layer.out_channels + self.nodes + self.per_letter * len(layer.name)


def _units(bits: int, unit: int) -> int:
    return -(-bits // (_BYTE * unit)) * unit


# onnx: scales, steps of biases and biases of 4 bytes, zero-points of 4 where codes are widened by Cast, Sub, Mul, Cast.
# onnx-packed: planes of 8 codes; scales and biases of 2 bytes, a zero-point. tflite: int32 biases, and for weights and
# biases a scale of 4 bytes and a zero-point of 8. c: a zero-point, an int32 bias, a multiplier of 4 bytes, a shift.
FORMS: Mapping[str, FileForm] = {
    form.name: form
    for form in (
        FileForm("onnx", "ONNX file", 12, _UINT2 | _UINT4, widened=16, nodes=170, per_letter=10, real=12),
        FileForm("onnx-packed", "packed ONNX file", 5, _OWN, unit=0, real=5),
        FileForm("tflite", "TFLite file", 28, unit=4),
        FileForm("tflite-int4", "TFLite file with int4", 28, {4: 4}, unit=4, convolutions=True),
        FileForm("c", "constants of the C code", 10, _OWN, rows=True),
    )
}
SIZES = (PACKED, *FORMS)


def title_of(name: str) -> str:
    """What the file is called that a size is of."""
    return "packed file" if name == PACKED else FORMS[name].title
