"""FastestDet (github.com/dog-qiuqiu/FastestDet, BSD-3-Clause) with its COCO weights from ../shared/data/models.

`--model benchmarks/fastestdet.py:factory --decode benchmarks/fastestdet.py:decode`. Input: BGR, 0..1, 352 × 352. One
map (N, 85, 22, 22): objectness, four numbers of the box, a softmax over 80 classes.
"""

from __future__ import annotations

import torch
from networks import DATA
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F


def conv(i: int, o: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its batch norm."""
    return [nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]


class Block(nn.Module):
    """A unit of ShuffleNetV2 (Ma et al., ECCV 2018); with stride 2 both branches see everything."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        middle, out = o // 2, o - i
        main = [
            *conv(i, middle, 1),
            nn.ReLU(),
            *conv(middle, middle, 3, stride, middle),
            *conv(middle, out, 1),
            nn.ReLU(),
        ]
        self.branch_main = nn.Sequential(*main)
        self.stride = stride
        if stride == 2:
            self.branch_proj = nn.Sequential(*conv(i, i, 3, 2, i), *conv(i, i, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, O, H / stride, W / stride)."""
        if self.stride == 2:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)
        return torch.cat([x[:, ::2], self.branch_main(x[:, 1::2])], 1)


class Backbone(nn.Module):
    """Maps of 48, 96 and 192 channels at strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*conv(3, 24, 3, 2), nn.ReLU())
        width = 24
        for name, repeats in (("stage2", 4), ("stage3", 8), ("stage4", 4)):
            out = 48 if width == 24 else 2 * width
            blocks = [Block(width, out, 2), *(Block(out // 2, out, 1) for _ in range(repeats - 1))]
            self.add_module(name, nn.Sequential(*blocks))
            width = out

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three maps."""
        one = self.stage2(F.max_pool2d(self.first_conv(x), 3, 2, 1))
        two = self.stage3(one)
        return one, two, self.stage4(two)


class Pointwise(nn.Module):
    """A 1 × 1 convolution with ReLU."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Sequential(*conv(i, o, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, O, H, W)."""
        return self.conv1x1(x)


class SPP(nn.Module):
    """Chains of one, two and three depthwise convolutions, added to what they read."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.Conv1x1 = Pointwise(i, o)
        for depth in (1, 2, 3):
            chain = [layer for _ in range(depth) for layer in (*conv(o, o, 5, 1, o), nn.ReLU())]
            self.add_module(f"S{depth}", nn.Sequential(*chain))
        self.output = nn.Sequential(*conv(3 * o, o, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, O, H, W)."""
        x = self.Conv1x1(x)
        return F.relu(x + self.output(torch.cat([self.S1(x), self.S2(x), self.S3(x)], 1)))


class Head(nn.Module):
    """A depthwise 5 × 5 convolution and a pointwise one."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv5x5 = nn.Sequential(*conv(i, i, 5, 1, i), nn.ReLU(), *conv(i, o, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, O, H, W)."""
        return self.conv5x5(x)


class DetectHead(nn.Module):
    """Objectness, box and classes."""

    def __init__(self, i: int, classes: int) -> None:
        super().__init__()
        self.conv1x1 = Pointwise(i, i)
        self.obj_layers, self.reg_layers, self.cls_layers = Head(i, 1), Head(i, 4), Head(i, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) to (N, 5 + classes, H, W)."""
        x = self.conv1x1(x)
        return torch.cat([self.obj_layers(x).sigmoid(), self.reg_layers(x), self.cls_layers(x).softmax(1)], 1)


class FastestDet(nn.Module):
    """The whole."""

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.backbone, self.SPP = Backbone(), SPP(336, 96)
        self.detect_head = DetectHead(96, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 5 + classes, H / 16, W / 16)."""
        one, two, three = self.backbone(x)
        maps = [F.avg_pool2d(one, 3, 2, 1), two, F.interpolate(three, scale_factor=2.0)]
        return self.detect_head(self.SPP(torch.cat(maps, 1)))


def decode(z: Tensor) -> tuple[Tensor, Tensor]:
    """(N, cells, 4) boxes x1 y1 x2 y2 in input pixels and (N, cells, 80) scores."""
    rows, columns = z.shape[2:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    z = z.permute(0, 2, 3, 1)
    centre = (z[..., 1:3].tanh() + torch.stack([x, y], -1).to(z)) * 16
    half = z[..., 3:5].sigmoid() * torch.tensor([columns, rows]).to(z) * 8
    boxes = torch.cat([centre - half, centre + half], -1)
    return boxes.flatten(1, 2), (z[..., :1] ** 0.6 * z[..., 5:] ** 0.4).flatten(1, 2)


def factory() -> nn.Module:
    """With its weights, in eval mode."""
    model = FastestDet()
    model.load_state_dict(load_file(str(DATA / "models" / "fastestdet_coco.safetensors")), strict=False)
    return model.eval()
