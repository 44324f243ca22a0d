"""ResNet-20 for CIFAR-10 (He et al., CVPR 2016, section 4.2; shortcuts of option A), as a factory for `--model`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; where the shape changes, the shortcut drops every second pixel and adds zero channels."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, (width - width_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, C, H, W) to (N, C', H / stride, W / stride)."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return torch.relu(x + y)


class ResNet20(nn.Module):
    """Images (N, 3, 32, 32) to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = self._stage(16, 16, 1), self._stage(16, 32, 2), self._stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(width_in: int, width: int, stride: int) -> nn.Sequential:
        first = BasicBlock(width_in, width, stride)
        return nn.Sequential(first, BasicBlock(width, width, 1), BasicBlock(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def make() -> nn.Module:
    """The factory."""
    return ResNet20()
