"""Errors count where the activation function behind a layer has a slope."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from captured import of_images
from torch import Tensor, nn

from recon.statistics.moments import gather_moments
from recon.statistics.slopes import FLOOR, activation_after, activations, slope_weight


class After(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.other, self.how = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), how
        self.relu6, self.pool = nn.ReLU6(inplace=True), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        ends = {"module": lambda: self.relu6(z), "function": lambda: F.hardtanh(z, min_val=0.0, max_val=6.0)}
        ends |= {"method": lambda: z.relu(), "read twice": lambda: F.relu(z) + z, "pool": lambda: self.pool(z)}
        ends |= {"layer": lambda: self.other(z), "power": lambda: z**2, "called twice": lambda: F.relu(self.layer(z))}
        return ends[self.how]()


@pytest.mark.parametrize(
    ("how", "top"),
    [("module", 6.0), ("function", 6.0), ("method", torch.inf)]
    + [(how, None) for how in ("read twice", "pool", "layer", "power", "called twice")],
)
def test_which_activation_reads_a_layer(how: str, top: float | None) -> None:
    activation = activation_after(of_images(After(how), (4, 6, 6)).module, "layer")
    assert (activation is None) == (top is None)
    if activation is not None:
        z = torch.tensor([[-1.0, 0.5], [5.0, 7.0]])
        counts = torch.where((z > 0) & (z < top), 1.0, FLOOR)
        assert torch.allclose(slope_weight(z, activation), counts)


def test_smooth_activations_count_by_the_square_of_their_slope() -> None:
    z = torch.linspace(-4, 4, 9)
    sigmoid = torch.sigmoid(z)
    slope = sigmoid * (1 + z * (1 - sigmoid))
    assert torch.allclose(slope_weight(z, nn.SiLU()), FLOOR + (1 - FLOOR) * slope.square().clamp_max(1), atol=1e-6)


@torch.no_grad()
def test_moments_are_those_of_the_patches_that_count() -> None:
    torch.manual_seed(0)
    for layer, groups in ((nn.Conv2d(4, 4, 3, groups=4), 4), (nn.Conv2d(4, 6, 3), 1)):
        net = of_images(nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(len(layer.weight) * 16, 2)), (4, 6, 6))
        x, found = torch.randn(40, 4, 6, 6) + torch.randn(40, 4, 1, 1), activations(net)
        assert list(found) == ["0"]
        moments = gather_moments(net.module, {"0": net.layer("0")}, [x], found)["0"]
        patches = F.unfold(x, 3).view(40, groups, -1, 16).permute(1, 2, 0, 3).flatten(2)  # (G, K, M)
        counts = torch.where(net.layer("0")(x) > 0, 1.0, FLOOR).transpose(0, 1).flatten(1)  # (O, M)
        for output, count in enumerate(counts):
            group = patches[output * groups // len(counts)]
            assert torch.allclose(moments.mean()[output], group @ count / count.sum(), atol=0.01)  # bfloat16
            if groups > 1:
                covariance = torch.cov(group, correction=0, aweights=count)
                shrunk = moments.hessian()[output]
                off = ~torch.eye(9, dtype=torch.bool)
                share = (shrunk[off] * covariance[off]).sum() / covariance[off].square().sum()
                assert torch.allclose(shrunk[off], share * covariance[off], atol=0.01)
                assert 0.5 < share < 1
