"""Small members of the families of networks that torchvision has, and of others that it has not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from captured import of_images
from torch import Tensor, nn
from torchvision.models import (
    ConvNeXt,
    DenseNet,
    EfficientNet,
    MaxVit,
    MobileNetV2,
    MobileNetV3,
    RegNet,
    ResNet,
    ShuffleNetV2,
    SqueezeNet,
    SwinTransformer,
    VisionTransformer,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.googlenet import BasicConv2d, Inception
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.ops import FeaturePyramidNetwork

from recon.graph.network import Network

SIDE = 32  # of all images


def googlenet() -> nn.Module:
    inceptions = [Inception(16, 8, 8, 8, 4, 8, 8), Inception(32, 8, 8, 8, 4, 8, 8)]
    return nn.Sequential(BasicConv2d(3, 16, kernel_size=3, stride=2), *inceptions, *head(32))


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


class Twice(nn.Sequential):
    """Two convolutions with batch norms."""

    def __init__(self, inside: int, outside: int) -> None:
        convs = nn.Conv2d(inside, outside, 3, padding=1), nn.Conv2d(outside, outside, 3, padding=1)
        norms = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)
        super().__init__(convs[0], norms[0], nn.ReLU(inplace=True), convs[1], norms[1], nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Two levels down and up again, with transposed convolutions and concatenated shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = Twice(3, 4), Twice(4, 8), Twice(8, 16)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(8, 4, 2, 2)
        self.left2, self.left1, self.head = Twice(16, 8), Twice(8, 4), nn.Conv2d(4, 2, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        x = self.left2(torch.cat([self.up2(self.bottom(self.pool(b))), b], 1))
        return self.head(self.left1(torch.cat([self.up1(x), a], 1)))


class Exchange(nn.Module):
    """Two resolutions side by side; each gets what the other one has seen (HRNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(BasicBlock(4, 4)), nn.Sequential(BasicBlock(8, 8))])
        self.up = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Upsample(scale_factor=2))
        self.down = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        fine, coarse = (branch(x) for branch, x in zip(self.branches, maps, strict=True))
        return [torch.relu(fine + self.up(coarse)), torch.relu(coarse + self.down(fine))]


class HRNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fork = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.stage = nn.Sequential(Exchange(), Exchange())
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        maps = self.stage([x, torch.relu(self.fork(x))])
        return self.head(torch.cat([x.mean((2, 3)) for x in maps], 1))


class Pyramid(nn.Module):
    """A feature pyramid on two stages of a trunk, and a head that all levels share, as in RetinaNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.one, self.two = BasicBlock(8, 8), nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), BasicBlock(16, 16))
        self.pyramid = FeaturePyramidNetwork([8, 16], 8)
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 6, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        one = self.one(self.stem(x))
        maps = self.pyramid({"one": one, "two": self.two(one)})
        return {name: self.head(x) for name, x in maps.items()}


class PixelShuffle(nn.Module):
    """Super-resolution: a residual of the enlarged image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.last, self.shuffle = nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(self.last(self.body(self.first(x))))
        return y + nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")


_V3, _MB, _FUSED = InvertedResidualConfig, MBConvConfig, FusedMBConvConfig
SMALL: dict[str, Callable[[], nn.Module]] = {
    "resnet": partial(ResNet, BasicBlock, [1, 2, 1, 1], num_classes=5),
    "mobilenet_v2": partial(MobileNetV2, 5, 0.5, [[1, 16, 1, 1], [6, 24, 2, 2]]),
    "mobilenet_v3": partial(
        MobileNetV3,
        [
            _V3(16, 3, 16, 16, True, "RE", 2, 1, 1),
            _V3(16, 3, 72, 24, False, "RE", 2, 1, 1),
            _V3(24, 3, 88, 24, False, "RE", 1, 1, 1),
            _V3(24, 5, 96, 40, True, "HS", 2, 1, 1),
        ],
        64,
        5,
    ),
    "efficientnet": partial(
        EfficientNet,
        [_FUSED(1, 3, 1, 16, 16, 1), _FUSED(4, 3, 2, 16, 24, 2), _MB(4, 3, 2, 24, 32, 2)],
        0.2,
        num_classes=5,
        last_channel=64,
    ),
    "regnet": partial(RegNet, BlockParams([1, 2], [16, 32], [8, 8], [1.0, 1.0], [2, 2], 0.25), 5),
    "squeezenet": partial(SqueezeNet, "1_1", 5),
    "shufflenet": partial(ShuffleNetV2, [2, 1, 1], [24, 48, 96, 192, 64], 5),
    "densenet": partial(DenseNet, 8, (3, 2), 16, num_classes=5),
    "googlenet": googlenet,
    "convnext": partial(ConvNeXt, [CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 1)], num_classes=5),
    "vit": partial(VisionTransformer, SIDE, 8, 2, 2, 16, 32, num_classes=5),
    "swin": partial(SwinTransformer, [4, 4], 16, [2, 1], [2, 4], [4, 4], num_classes=5),
    "swin_v2": partial(
        SwinTransformer,
        [4, 4],
        16,
        [1, 1],
        [2, 4],
        [4, 4],
        num_classes=5,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    ),
    "maxvit": partial(MaxVit, (SIDE, SIDE), 8, 4, [8], [1], 8, 0.0, num_classes=5),
    "u-net": UNet,
    "hrnet": HRNet,
    "pyramid": Pyramid,
    "pixel shuffle": PixelShuffle,
}


def settled(model: nn.Module, size: tuple[int, ...] = (3, SIDE, SIDE)) -> nn.Module:
    """The model in eval mode, its batch norms far from the identity and knowing what they see: else a deep network of
    random weights gives the same for everything."""
    x = torch.randn(16, *size, generator=torch.Generator().manual_seed(0))
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():  # as torchvision's heads of ViT are
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    with torch.no_grad():
        for _ in range(2 if norms else 0):
            model.train()(x)
    return model.eval()


@cache
def small(name: str) -> tuple[nn.Module, Network]:
    """A small member of a family in eval mode, and what it is captured as; neither may be changed."""
    torch.manual_seed(0)
    model = settled(SMALL[name]())
    return model, of_images(model, (3, SIDE, SIDE), name)
