"""Published figures that the device models are compared with, and the layers that they belong to."""

from __future__ import annotations

from collections.abc import Sequence

from hwmodel.layer import LayerSpec, LayerTable
from hwmodel.precision import Precision

# Cycles for a batch of 16 on the array of 16 x 32 units, 192 bits a cycle: results/bitfusion-eyeriss-sim-sweep.csv of
# github.com/hsharma35/bitfusion. (in, out, kernel, side, precision, cycles, of which memory wait). AlexNet and
# ResNet-18 are there with 16-bit weights, which we do not model. SVHN's one-bit codes are computed as 2 bits there,
# but stored as 1.
# The csv gives VGG-7's second convolution of a stage the shape of the first. LeNet-5 is on 32 x 32 images there, as its
# buffer accesses show.
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
        (1, 32, 5, 32, W2, 179116, 162732),
        (32, 64, 5, 16, W2, 205635, 835),
        (4096, 512, 1, 1, W2, 25259, 21163),
        (512, 10, 1, 1, W2, 342, 310),
    ),
    "RNN": ((4096, 4096, 1, 1, W4, 394583, 263511),),
    "LSTM": ((3600, 3600, 1, 1, W4, 337175, 231383),),
}

# The same file's counts, summed over layers: cycles that compute; bits read from and written to the buffers of weights,
# outputs and inputs; bits read from and written to main memory.
BITFUSION_COUNTS = {
    "CIFAR10": (1771584, 20082655232, 28168192, 506483712, 506483712, 20082655232, 97714176, 379129856, 253247488),
    "SVHN": (780352, 2528280576, 6486016, 236999680, 236999680, 2726461440, 9453568, 134445056, 118505472),
    "VGG-7": (1032192, 10158604288, 22937600, 471859200, 471859200, 10158604288, 47120384, 305987584, 235929600),
    "LeNet-5": (225312, 512917504, 4352000, 51663872, 51663872, 512917504, 14073856, 43870208, 25444352),
    "RNN": (131072, 1073741824, 67108864, 8388608, 8388608, 1073741824, 262144, 71565312, 4194304),
    "LSTM": (105792, 866648064, 54165504, 110231552, 110231552, 866648064, 6770688, 62836736, 1900544),
}
# Joules for each of them: the array's cycle, a bit of each buffer (that repository's sram/cacti_sweep.csv: 32 bits of a
# bank of 128 B, 512 B and 2 KiB), and a bit of main memory (its stats.py).
BITFUSION_JOULES = (
    2.351e-10, 6.837e-13 / 32, 9.253e-13 / 32, 1.0610e-12 / 32, 2.3387e-12 / 32, 1.9032e-12 / 32, 3.6385e-12 / 32,
    1.5e-11, 1.5e-11,
)  # fmt: skip

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


# Microseconds of ResNet-18's layers at INT4 and INT8 on a T4, in the order of HAWQ_ILP_LAYERS: ILP.ipynb of
# github.com/Zhen-Dong/HAWQ (HAWQ-V3), which does not state the batch; 19 layers, whole kernels with requantization.
# (in, out, kernel, stride, side of the output)
HAWQ_ILP_LAYERS = (
    *[(64, 64, 3, 1, 56)] * 4,
    (64, 128, 3, 2, 28), (128, 128, 3, 1, 28), (64, 128, 1, 2, 28), *[(128, 128, 3, 1, 28)] * 2,
    (128, 256, 3, 2, 14), (256, 256, 3, 1, 14), (128, 256, 1, 2, 14), *[(256, 256, 3, 1, 14)] * 2,
    (256, 512, 3, 2, 7), (512, 512, 3, 1, 7), (256, 512, 1, 2, 7), *[(512, 512, 3, 1, 7)] * 2,
)  # fmt: skip
HAWQ_ILP_INT4 = (
    210.94404, 210.92674, 211.04113, 210.86851, 136.42465, 191.67506, 25.32183, 191.48203, 191.42914, 113.95316,
    205.56011, 19.17474, 205.66918, 205.66509, 131.85102, 222.87786, 17.90088, 223.04611, 222.86099,
)  # fmt: skip
HAWQ_ILP_INT8 = (
    361.89111, 362.11718, 311.41909, 304.54471, 191.84896, 389.48934, 33.4169, 389.04905, 389.2859, 191.34735,
    343.07431, 28.02354, 343.13329, 343.10756, 211.17103, 373.76585, 28.96843, 373.98187, 374.05185,
)  # fmt: skip

# Cycles without stalls of a 32 x 32 array: reports that are stored with github.com/scalesim-project/scale-sim-v2.
# (dataflow, report, in, out, kernel, height and width of the output, cycles)
SCALE_SIM = (
    ("weight-stationary", "test/golden_trace (AlexNet conv1)", 3, 96, 11, (55, 55), 112283),
    ("weight-stationary", "test/general/golden_trace_user_ws (GEMM 256, 128, 256)", 256, 128, 1, (256, 1), 11199),
    ("output-stationary", "rundir-accelergy example (Inception 5b 3x3)", 192, 384, 3, (5, 5), 21479),
    ("output-stationary", "test/general/golden_trace_user_os (GEMM 256, 128, 256)", 256, 128, 1, (256, 1), 10175),
)

# Milliseconds of MobileNetV1 at 8 bits on one Cortex-M7 at 400 MHz (STM32H747I-DISCO), by width and image: the
# vendor's table in github.com/STMicroelectronics/stm32ai-modelzoo (STM32Cube.AI 10.0.0). (width, side, classes, ms)
STM32H7_MOBILENET_V1 = (
    (0.25, 96, 5, 29.94), (0.25, 224, 5, 163.78), (0.25, 224, 1000, 166.75),
    (0.5, 224, 5, 485.79), (0.5, 224, 1000, 504.37), (1.0, 224, 1000, 1641.84),
)  # fmt: skip

# Milliseconds at INT8 on a Raspberry Pi 3+ (BCM2837B0: four Cortex-A53 at 1.4 GHz, all used): README of
# github.com/google/XNNPACK, 8 February 2022.
XNNPACK_A53 = {"MobileNetV1": 46.0, "MobileNetV2": 30.0}


def square(
    name: str,
    into: int,
    out: int,
    kernel: int,
    side: int,
    stride: int = 1,
    groups: int = 1,
    out_size: tuple[int, int] | None = None,
) -> LayerSpec:
    """A convolution with a square kernel, padded so that its output is `side` wide (or `out_size`)."""
    out_size = out_size or (side, side)
    size = (out_size[0] * stride, out_size[1] * stride)
    return LayerSpec(
        name, "conv", into, out, (kernel,) * 2, (stride,) * 2, (1, 1), groups, size, out_size, name, name
    )  # fmt: skip


def bitfusion_layers(network: str) -> LayerTable:
    """The layers of one of Bit Fusion's benchmarks."""
    layers = tuple(square(f"l{i}", *row[:4]) for i, row in enumerate(BITFUSION[network]))
    return LayerTable(network, ((3, 32, 32),), layers)


def t4_layers(rows: Sequence[tuple[float, ...]]) -> LayerTable:
    """The layers of a T4 log: (in, out, kernel, stride, side, …)."""
    layers = tuple(
        square(f"l{i}", int(into), int(out), int(kernel), int(side), int(stride))
        for i, (into, out, kernel, stride, side, *_) in enumerate(rows)
    )
    return LayerTable("t4", ((3, 224, 224),), layers)


def mobilenet_v1(width: float, side: int, classes: int) -> LayerTable:
    """MobileNetV1 (Howard et al., arXiv 1704.04861, table 1)."""
    blocks = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
    into, side = int(32 * width), side // 2
    layers = [square("conv", 3, into, 3, side, 2)]
    for i, (out, stride) in enumerate(blocks):
        side, out = side // stride, int(out * width)
        layers += [square(f"dw{i}", into, into, 3, side, stride, into), square(f"pw{i}", into, out, 1, side)]
        into = out
    return LayerTable("MobileNetV1", ((3, 224, 224),), (*layers, square("fc", into, classes, 1, 1)))


def mobilenet_v2() -> LayerTable:
    """MobileNetV2 at 224 × 224 (Sandler et al., CVPR 2018, table 2)."""
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    into, side, layers = 32, 112, [square("conv", 3, 32, 3, 112, 2)]
    for expand, out, count, first in stages:
        for i in range(count):
            stride = first if i == 0 else 1
            name, wide = f"{out}.{i}", into * expand
            if expand > 1:
                layers.append(square(f"{name}.expand", into, wide, 1, side))
            side //= stride
            layers += [
                square(f"{name}.dw", wide, wide, 3, side, stride, wide),
                square(f"{name}.project", wide, out, 1, side),
            ]
            into = out
    layers += [square("last", into, 1280, 1, side), square("fc", 1280, 1000, 1, 1)]
    return LayerTable("MobileNetV2", ((3, 224, 224),), tuple(layers))
