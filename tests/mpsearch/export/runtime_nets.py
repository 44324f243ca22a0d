"""Small networks with every operation that integer runtimes have, and their plans."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwmodel import BitConfig, Precision
from mpsearch.export.plan.build import build_plan
from mpsearch.export.plan.records import Plan
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.quantizers.quantized import QuantizedLayers, plainly_rounded


class Residual(nn.Module):
    """A MobileNet: strided depthwise convolutions, ReLU6, a residual sum, a pooled classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.wide = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6())
        self.narrow, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.narrow(self.wide(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Neck(nn.Module):
    """A detector: space to depth, SiLU, pooling of several sizes, a map that is enlarged, three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.mix, self.out, self.more = nn.Conv2d(24, 8, 1), nn.Conv2d(16, 6, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1)
        x = F.silu(self.stem(x))
        y = F.silu(self.down(x))
        y = F.silu(self.mix(torch.cat((y, F.max_pool2d(y, 3, 1, 1), F.max_pool2d(y, 5, 1, 2)), 1)))
        z = torch.cat((F.interpolate(y, scale_factor=2.0), x), 1)
        return self.out(z), self.more(y)


class Excited(nn.Module):
    """Squeeze and excitation with hard functions, and a mean that is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        gate = F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head((x * gate).mean((2, 3)))


class Shuffled(nn.Module):
    """Channels are split, grouped convolutions computed, and channels shuffled; pooling that rounds sizes up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(4, 4, 3, 1, 1, groups=2), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, ceil_mode=True)
        left, right = x.chunk(2, 1)
        x = torch.cat((left, F.relu(self.one(right))), 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.two(F.avg_pool2d(x, 2))


class Split(nn.Module):
    """A narrow half is read by a layer and the wide one by another; a map with a wide range is averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(32, 4)
        with torch.no_grad():
            self.stem.weight[4:] *= 10

    def forward(self, x: Tensor) -> Tensor:
        narrow, wide = self.stem(x).split(4, 1)
        x = torch.cat((self.one(narrow), F.relu(self.two(wide))), 1)
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Smooth(nn.Module):
    """Depthwise convolutions behind SiLU, one channel of which is far wider than the others; both read one map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.two, self.head = nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Conv2d(24, 4, 1)
        with torch.no_grad():
            self.stem.weight[0] *= 100
            self.one.weight[0] /= 100
            self.two.weight[:2] /= 100

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        return self.head(F.relu(torch.cat((self.one(x), self.two(x)), 1)))


NETS = {
    "split": (Split, (3, 12, 12)),
    "residual": (Residual, (3, 16, 16)),
    "neck": (Neck, (3, 16, 16)),
    "excited": (Excited, (3, 12, 12)),
    "shuffled": (Shuffled, (3, 20, 20)),
}
WITH_STEPS = {**NETS, "smooth": (Smooth, (3, 16, 16))}  # by channel


@cache
def _captured(name: str, count: int) -> tuple[Network, tuple[Tensor, ...]]:
    kind, shape = WITH_STEPS[name]
    torch.manual_seed(0)
    samples = Samples.noise(shape, count=count)
    network = capture(kind().eval(), samples, name)
    return network, network.leaves(samples)


def low_bit(
    name: str, precision: Precision, symmetric: tuple[int, ...] = (), count: int = 16
) -> tuple[Network, QuantizedLayers, tuple[Tensor, ...]]:
    """A network of `WITH_STEPS` with random weights, its plainly rounded layers, and samples."""
    network, leaves = _captured(name, count)
    config = BitConfig.uniform(network.table.names, precision)
    return network, plainly_rounded(network, leaves, config, symmetric), leaves


def plan_of(name: str, precision: Precision, *, real_outputs: bool = True, symmetric: tuple[int, ...] = ()) -> Plan:
    """The integer plan of that."""
    network, layers, leaves = low_bit(name, precision, symmetric)
    return build_plan(network, layers, leaves, real_outputs=real_outputs)
