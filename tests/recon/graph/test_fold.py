"""Folded networks compute what the originals compute."""

from __future__ import annotations

import pytest
import torch
from captured import of_images, require_same
from families import SMALL, small
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from recon.graph.network import Network
from recon.graph.nodes import aten, packet_of


def randomise_norms(model: nn.Module) -> nn.Module:
    """Batch norm statistics and parameters far from the identity."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            with torch.no_grad():
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.3)
    return model.eval()


def norms(network: Network) -> int:
    """Batch norms that are still computed."""
    return sum(packet_of(node) in NORMS for node in network.module.graph.nodes)


NORMS = (aten.batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training)


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("densenet", "maxvit")])
def test_whole_families_fold(name: str) -> None:
    model, network = small(name)
    assert norms(network) == 0
    assert not any("batch norm" in reason for _, reason in network.table.uncounted)
    held = sum(isinstance(module, _BatchNorm) for module in model.modules())
    assert held or name in ("squeezenet", "convnext", "vit", "swin", "swin_v2")


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False), nn.ReLU()), (3, 8, 8)),
        (nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, eps=0.1), nn.ReLU(inplace=True)), (3, 8, 8)),
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.SyncBatchNorm(6)), (3, 8, 8)),
        (nn.Sequential(nn.Conv2d(3, 6, 8), nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU()), (3, 8, 8)),
        (nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), (3, 8)),
        (nn.Sequential(nn.Conv3d(3, 6, 3), nn.BatchNorm3d(6)), (3, 4, 4, 4)),
        (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)), (4, 4, 4)),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(), nn.BatchNorm2d(4)), (3, 8, 8)),
    ],
    ids=str,
)
def test_kinds_that_fold(model: nn.Module, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = of_images(randomise_norms(model), size)
    assert norms(network) == 0
    assert network.table.uncounted == ()
    require_same(network, model, torch.randn(4, *size))


class ReadTwice(nn.Module):
    """The convolution's output is normalised, and also used as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class ReturnsBoth(ReadTwice):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.cat([self.bn(y), *self.keep(y)], 1)

    def keep(self, y: Tensor) -> list[Tensor]:
        return [y]


class CalledTwice(ReadTwice):
    """One convolution and one batch norm for each of its two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.second = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.bn(self.conv(x))))


class SharedWeight(ReadTwice):
    """Two convolutions hold one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.other = nn.Conv2d(3, 3, 1)
        self.other.weight = self.conv.weight
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.bn(self.conv(x)))


class WeightReadElsewhere(ReadTwice):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.conv.weight.mean()


class OneNormTwice(ReadTwice):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.bn(self.other(x))


class PreActivation(ReadTwice):
    """The batch norm stands before the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.bn(x)))


class NormWithActivation(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class NormOfTokens(ReadTwice):
    """The batch norm's channels are the tokens, not the layer's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(8, 8)
        self.bn = nn.BatchNorm1d(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x.flatten(1, 2)))


@pytest.mark.parametrize(
    "model",
    [SharedWeight(), OneNormTwice(), nn.Sequential(nn.Conv2d(3, 4, 1), NormWithActivation(4))],
    ids=lambda model: type(model).__name__,
)
def test_layers_of_their_own_fold(model: nn.Module) -> None:
    torch.manual_seed(0)
    network = of_images(randomise_norms(model), (3, 8, 8))
    assert norms(network) == 0
    assert network.table.uncounted == ()
    require_same(network, model, torch.randn(4, 3, 8, 8))


def test_a_weight_that_is_read_elsewhere_is_not_scaled_there() -> None:
    torch.manual_seed(0)
    model = randomise_norms(WeightReadElsewhere())
    network = of_images(model, (3, 8, 8))
    assert norms(network) == 0
    assert dict(network.table.uncounted) == {"conv": "Conv2d is not quantized"}
    require_same(network, model, torch.randn(4, 3, 8, 8))


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        (ReadTwice(), {"bn": "also used elsewhere"}),
        (ReturnsBoth(), {"bn": "also used elsewhere"}),
        (CalledTwice(), {"bn": "called more than once", "second": "called more than once"}),
        (PreActivation(), {"bn": "not the output of a layer"}),
        (NormOfTokens(), {"bn": "does not normalise the channels"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_norms_that_stay(model: nn.Module, reasons: dict[str, str]) -> None:
    torch.manual_seed(0)
    network = of_images(randomise_norms(model), (3, 8, 8))
    uncounted = dict(network.table.uncounted)
    assert set(uncounted) == set(reasons)
    assert norms(network) == len(reasons)
    assert all(text in uncounted[name] for name, text in reasons.items())
    require_same(network, model, torch.randn(4, 3, 8, 8))


def test_a_norm_without_running_statistics_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    network = of_images(model, (3, 8, 8))
    assert norms(network) == 1
    assert [name for name, _ in network.table.uncounted] == ["1"]
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(network.model(x), model(x), atol=1e-5)
