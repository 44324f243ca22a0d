"""What is computed beside layers, by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon.graph.beside import operations_beside
from recon.graph.network import capture


class Neck(nn.Module):
    """Two maps of SiLU, one of them enlarged, joined, added to and reshaped; a constant is no operation of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.one(x))
        y = F.silu(self.two(x)) * self.scale.exp()
        joined = torch.cat((x, F.interpolate(y, scale_factor=2.0)), 1)
        return (joined + 1).flatten(2).transpose(1, 2)


def test_operations_are_counted_and_layers_views_and_constants_are_not() -> None:
    found = operations_beside(capture(Neck(), torch.randn(2, 3, 8, 8)).module)
    assert found == {"silu": 2, "mul": 1, "upsample_nearest2d": 1, "cat": 1, "add": 1}
    assert next(iter(found)) == "silu"


def test_layers_alone_have_nothing_beside_them() -> None:
    assert operations_beside(capture(nn.Sequential(nn.Linear(3, 4)), torch.randn(2, 3)).module) == {}
