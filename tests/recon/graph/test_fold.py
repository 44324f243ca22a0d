"""Folded networks compute what the originals compute."""

import pytest
import torch
import torchvision
from captured import of_images
from torch import Tensor, nn


def randomise_norms(model: nn.Module) -> nn.Module:
    """Batch norm statistics and parameters far from the identity."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.3)
    return model.eval()


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def assert_same(model: nn.Module, folded: nn.Module, size: tuple[int, ...]) -> None:
    x = torch.randn(3, *size)
    expected = model(x)
    scale = float(expected.abs().max())
    assert float((folded(x) - expected).abs().max()) <= 1e-4 * scale


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "regnet_x_400mf"])
def test_folded_family_is_the_original(name: str) -> None:
    torch.manual_seed(0)
    model = randomise_norms(getattr(torchvision.models, name)(weights=None))
    network = of_images(model, (3, 64, 64))
    assert norms(model)
    assert norms(network.model) == []
    assert network.table.uncounted == ()
    assert_same(model, network.model, (3, 64, 64))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, eps=0.1), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.SyncBatchNorm(6)),
        nn.Sequential(nn.Conv2d(3, 6, 8), nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU()),
    ],
)
def test_kinds_that_fold(model: nn.Module) -> None:
    torch.manual_seed(0)
    network = of_images(randomise_norms(model), (3, 8, 8))
    assert norms(network.model) == []
    assert network.table.uncounted == ()
    assert_same(model, network.model, (3, 8, 8))


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
        return torch.cat([self.bn(y), *self.keep(y)])

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
    ("model", "reasons"),
    [
        (ReadTwice(), {"bn": "also used elsewhere"}),
        (ReturnsBoth(), {"bn": "also used elsewhere"}),
        (CalledTwice(), {"bn": "called more than once", "second": "called more than once"}),
        (SharedWeight(), {"bn": "shares its parameters"}),
        (WeightReadElsewhere(), {"bn": "shares its parameters"}),
        (OneNormTwice(), {"bn": "it is called more than once"}),
        (PreActivation(), {"bn": "not the output of a layer"}),
        (NormOfTokens(), {"bn": "does not normalise the channels"}),
        (nn.Sequential(nn.Conv2d(3, 4, 1), NormWithActivation(4)), {"1": "more than a batch norm"}),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
            {"1": "no running statistics"},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_norms_that_stay(model: nn.Module, reasons: dict[str, str]) -> None:
    torch.manual_seed(0)
    if all(getattr(module, "track_running_stats", True) for module in model.modules()):
        randomise_norms(model)
    network = of_images(model.eval(), (3, 8, 8))
    uncounted = dict(network.table.uncounted)
    assert set(uncounted) == set(reasons) == set(norms(network.model))
    assert all(text in uncounted[name] for name, text in reasons.items())
    assert_same(model, network.model, (3, 8, 8))
