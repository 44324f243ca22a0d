"""Passes over exported graphs."""

from __future__ import annotations

import torch
from captured import of_images
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class OfOneType(nn.Module):
    """Operations that take tensors of one type alone, behind a layer and beside parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.bilinear = nn.Linear(8, 6), nn.Linear(5, 4), nn.Bilinear(6, 6, 5)
        self.scale, self.offset = nn.Parameter(torch.rand(6)), nn.Parameter(torch.zeros(1, 18, 3, 2))
        self.kernel = nn.Parameter(torch.rand(1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        z = torch.zeros_like(x)[:, :6].clone()
        z[:, torch.tensor([0, 2])] = h[:, :2]
        z = torch.lerp(z, h, 0.5) + torch.mv(h, self.scale)[:, None]
        z = z.index_add(1, torch.tensor([1, 3]), h[:, :2]).scatter_add(
            1, torch.zeros(h.shape[0], 1, dtype=torch.long), h
        )
        maps = z.reshape(-1, 1, 3, 2)
        z = z + deform_conv2d(maps, self.offset.expand(maps.shape[0], -1, -1, -1), self.kernel, padding=1).flatten(1)
        return self.last(self.bilinear(z, h))


def test_operations_of_one_type_run_beside_bfloat16() -> None:
    model, x = OfOneType().eval(), torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    network = of_images(model, (8,))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = network.module(x)
    expected = model(x).detach()
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.03 * float(expected.abs().max()))
