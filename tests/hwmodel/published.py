"""Published figures that the device models are compared with, and the layers that they belong to."""

from __future__ import annotations

from hwmodel.layer import LayerSpec, LayerTable
from hwmodel.precision import Precision

# Cycles for a batch of 16 on the array of 16 x 32 units, 192 bits a cycle: results/bitfusion-eyeriss-sim-sweep.csv of
# github.com/hsharma35/bitfusion. (in, out, kernel, side, precision, cycles, of which memory wait). AlexNet and
# ResNet-18 are there with 16-bit weights, which we do not model. SVHN's one-bit codes are computed as 2 bits there,
# but stored as 1.
# The csv gives VGG-7's second convolution of a stage the shape of the first.
W2, W4, W8 = Precision(2, 2), Precision(4, 4), Precision(8, 8)
BITFUSION = {
    "CIFAR10": (
        (3, 128, 3, 32, W8, 717654, 586582),
        (128, 128, 3, 32, W2, 799062, 209238),
        (128, 256, 3, 16, W2, 402091, 107179),
        (256, 256, 3, 16, W2, 492204, 197292),
        (256, 512, 3, 8, W2, 255318, 107862),
        (512, 512, 3, 8, W2, 510636, 215724),
        (8192, 1024, 1, 1, W2, 99671, 83287),
        (1024, 1024, 1, 1, W2, 16555, 14507),
        (1024, 10, 1, 1, W2, 513, 449),
    ),
    "SVHN": (
        (3, 64, 3, 32, Precision(2, 8), 367979, 335211),
        (64, 64, 3, 32, W2, 358316, 63404),
        (64, 128, 3, 16, W2, 177409, 29953),
        (128, 128, 3, 16, W2, 179884, 32428),
        (128, 256, 3, 8, W2, 92161, 18433),
        (256, 256, 3, 8, W2, 102742, 29014),
        (4096, 1024, 1, 1, W2, 27649, 19457),
        (1024, 1024, 1, 1, W2, 11009, 8961),
        (1024, 10, 1, 1, W2, 374, 310),
    ),
    "VGG-7": (
        (3, 128, 3, 32, W2, 704001, 638465),
        (3, 128, 3, 32, W2, 704001, 638465),
        (128, 256, 3, 16, W2, 402091, 107179),
        (128, 256, 3, 16, W2, 402091, 107179),
        (256, 512, 3, 8, W2, 255318, 107862),
        (256, 512, 3, 8, W2, 255318, 107862),
        (8192, 1024, 1, 1, W2, 99671, 83287),
    ),
    "LeNet-5": (
        (1, 32, 5, 28, W2, 179116, 162732),
        (32, 64, 5, 14, W2, 205635, 835),
        (3136, 512, 1, 1, W2, 25259, 21163),
        (512, 10, 1, 1, W2, 342, 310),
    ),
    "RNN": ((4096, 4096, 1, 1, W4, 394583, 263511),),
    "LSTM": ((3600, 3600, 1, 1, W4, 337175, 231383),),
}

# Microseconds for a batch of 8 on a T4, INT4 and INT8: the tuning logs of github.com/Zhen-Dong/HAWQ, tvm_benchmark/
# mixed_precision_models/tuning_logs (HAWQ-V3). (in, out, kernel, stride, side of the output, INT4, INT8)
T4_RESNET18 = (
    (512, 512, 3, 1, 7, 83.126, 145.678),
    (256, 512, 3, 2, 7, 45.500, 75.521),
    (256, 256, 3, 1, 14, 76.263, 125.343),
    (128, 256, 3, 2, 14, 33.592, 65.200),
    (128, 128, 3, 1, 28, 63.548, 146.008),
    (64, 128, 3, 2, 28, 33.684, 70.492),
    (64, 64, 3, 1, 56, 62.438, 118.806),
    (64, 128, 1, 2, 28, 9.006, 13.806),
    (128, 256, 1, 2, 14, 6.371, 10.782),
    (256, 512, 1, 2, 7, 6.410, 11.134),
)
T4_RESNET50 = (
    (64, 64, 3, 1, 56, 68.528, 140.133),
    (512, 2048, 1, 1, 7, 35.737, 62.554),
    (512, 512, 3, 1, 7, 78.204, 126.135),
    (2048, 512, 1, 1, 7, 41.830, 68.037),
    (512, 512, 3, 2, 7, 85.855, 191.427),
    (1024, 512, 1, 1, 14, 77.079, 153.816),
    (256, 1024, 1, 1, 14, 38.437, 66.007),
    (256, 256, 3, 2, 14, 75.843, 153.123),
    (512, 256, 1, 1, 28, 60.926, 129.139),
    (128, 512, 1, 1, 28, 57.968, 85.747),
    (128, 128, 3, 1, 28, 69.011, 134.310),
    (128, 128, 3, 2, 28, 81.001, 165.504),
    (256, 128, 1, 1, 56, 75.455, 183.904),
    (256, 512, 1, 2, 28, 68.524, 145.186),
    (512, 1024, 1, 2, 14, 65.555, 141.735),
    (1024, 2048, 1, 2, 7, 74.774, 148.495),
    (1024, 512, 1, 2, 7, 33.353, 36.148),
    (256, 256, 3, 1, 14, 74.543, 124.421),
    (1024, 256, 1, 1, 14, 36.509, 62.530),
    (512, 256, 1, 2, 14, 17.615, 34.000),
    (512, 128, 1, 1, 28, 35.790, 88.331),
    (256, 128, 1, 2, 28, 20.698, 42.892),
    (64, 256, 1, 1, 56, 112.281, 120.769),
    (256, 64, 1, 1, 56, 43.395, 110.523),
    (64, 64, 1, 1, 56, 33.184, 38.156),
)


def square(name: str, into: int, out: int, kernel: int, side: int, stride: int = 1) -> LayerSpec:
    """A convolution with a square kernel and map, padded so that its output is `side` wide."""
    size = (side * stride,) * 2
    return LayerSpec(
        name, "conv", into, out, (kernel,) * 2, (stride,) * 2, (1, 1), 1, size, (side, side), name, name
    )  # fmt: skip


def bitfusion_layers(network: str) -> LayerTable:
    """The layers of one of Bit Fusion's benchmarks."""
    layers = tuple(square(f"l{i}", *row[:4]) for i, row in enumerate(BITFUSION[network]))
    return LayerTable(network, (3, 32, 32), layers)


def t4_layers(rows: tuple[tuple[int, int, int, int, int, float, float], ...]) -> LayerTable:
    """The layers of a T4 log."""
    layers = tuple(
        square(f"l{i}", into, out, kernel, side, stride) for i, (into, out, kernel, stride, side, *_) in enumerate(rows)
    )
    return LayerTable("t4", (3, 224, 224), layers)
