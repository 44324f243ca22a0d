"""The block partition of every family of networks, found in the graph alone."""

from functools import cache

import pytest
import torch
import torchvision
from captured import of_images
from torch import Tensor, nn

from recon.graph.network import Network


@cache
def family(name: str) -> tuple[nn.Module, Network]:
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "vgg11") else {}
    model = getattr(torchvision.models, name)(weights=None, **options).eval()
    return model, of_images(model, (3, 64, 64), name)


def numbered(pattern: str, *counts: int) -> list[str]:
    """`pattern.format(stage, i)` for i below each stage's count, stages numbered from 1."""
    return [pattern.format(stage, i) for stage, count in enumerate(counts, 1) for i in range(count)]


PARTITIONS = {
    "resnet18": ["conv1", *numbered("layer{}.{}", 2, 2, 2, 2), "fc"],
    "mobilenet_v2": ["features.0.0", *(f"features.{i}" for i in range(1, 18)), "features.18.0", "classifier.1"],
    "regnet_x_400mf": ["stem.0", *numbered("trunk_output.block{0}.block{0}-{1}", 1, 2, 7, 12), "fc"],
    "mnasnet1_0": [
        *("layers.0", "layers.3", "layers.6"),
        *(f"layers.{8 + stage}.{i}" for stage, count in enumerate((3, 3, 3, 2, 4, 1)) for i in range(count)),
        *("layers.14", "classifier.1"),
    ],
    "squeezenet1_1": ["features.0", *(f"features.{i}" for i in (3, 4, 6, 7, 9, 10, 11, 12)), "classifier.1"],
    "shufflenet_v2_x1_0": ["conv1.0", *numbered("stage{}.{}", 0, 4, 8, 4), "conv5.0", "fc"],
    "efficientnet_b0": [
        "features.0.0",
        *numbered("features.{}.{}", 1, 2, 2, 3, 3, 4, 1),
        "features.8.0",
        "classifier.1",
    ],
    "mobilenet_v3_small": [
        *("features.0.0", *(f"features.{i}" for i in range(1, 12))),
        *("features.12.0", "classifier.0", "classifier.3"),
    ],
    "vgg11": [
        *(f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)),
        *("classifier.0", "classifier.3", "classifier.6"),
    ],
    "densenet121": [
        "features.conv0",
        *(f"features.{part}" for i in (1, 2, 3) for part in (f"denseblock{i}", f"transition{i}.conv")),
        *("features.denseblock4", "classifier"),
    ],
    "googlenet": [
        *("conv1.conv", "conv2.conv", "conv3.conv"),
        *(f"inception{i}" for i in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")),
        "fc",
    ],
    "convnext_tiny": [
        *("features.0.0", *numbered("features.1.{1}", 3), "features.2.1", *numbered("features.3.{1}", 3)),
        *("features.4.1", *numbered("features.5.{1}", 9), "features.6.1", *numbered("features.7.{1}", 3)),
        "classifier.2",
    ],
    "swin_t": [
        *("features.0.0", *numbered("features.1.{1}", 2), "features.2.reduction", *numbered("features.3.{1}", 2)),
        *("features.4.reduction", *numbered("features.5.{1}", 6), "features.6.reduction"),
        *(*numbered("features.7.{1}", 2), "head"),
    ],
}


@pytest.mark.parametrize("name", PARTITIONS)
def test_partition_of_family(name: str) -> None:
    _, network = family(name)
    print(f"\n{name}: " + ", ".join(f"{unit.name} ({len(unit.layers)})" for unit in network.units))
    assert network.chained
    assert [unit.name for unit in network.units] == PARTITIONS[name]


@pytest.mark.parametrize("name", PARTITIONS)
def test_units_cover_the_layers_in_order(name: str) -> None:
    _, network = family(name)
    assert tuple(layer for unit in network.units for layer in unit.layers) == network.table.names
    assert all(spec.block == unit.name for unit in network.units for spec in network.table if spec.name in unit.layers)


@pytest.mark.parametrize("name", PARTITIONS)
def test_chained_units_are_the_model(name: str) -> None:
    model, network = family(name)
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = x
        for unit in network.units:
            given = z.clone()
            output = unit.module(z)
            assert torch.equal(z, given), f"{unit.name} changes its input"
            z = output
        expected = model(x)
    scale = float(expected.abs().max())
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-4 * scale)
    torch.testing.assert_close(network.model(x), expected, rtol=0, atol=1e-4 * scale)


def test_vit_blocks_are_encoder_layers() -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=5)
    network = of_images(model, (3, 32, 32))
    assert [(unit.name, len(unit.layers)) for unit in network.units] == [
        ("conv_proj", 1),
        *((f"encoder.layers.encoder_layer_{i}", 2) for i in range(3)),
        ("heads.head", 1),
    ]
    uncounted = dict(network.table.uncounted)
    assert {"class_token", "encoder.pos_embedding", "encoder.ln"} <= set(uncounted)
    assert "MultiheadAttention" in uncounted["encoder.layers.encoder_layer_0.self_attention"]


class Skip(nn.Module):
    """A residual block written with functions, its last activation included."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return torch.relu(self.second(y) + x)


class HandWritten(nn.Module):
    """Branches in the model's own forward, functional pooling and flattening by size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.mid = nn.Conv2d(8, 8, 3)
        self.skip = Skip(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor, unused: bool = False) -> Tensor:
        x = nn.functional.relu(self.stem(x), inplace=True)
        x = nn.functional.max_pool2d(x, 2)
        x = self.left(x) + self.right(x)
        x = nn.functional.hardswish(self.mid(x))
        x = self.skip(x).mean([2, 3])
        return self.head(x.view(x.size(0), -1))


def check_chain(model: nn.Module, size: tuple[int, int, int], expected: list[tuple[str, ...]]) -> Network:
    network = of_images(model, size)
    assert network.chained
    assert [(unit.name, *unit.layers) for unit in network.units] == expected
    x = z = torch.randn(3, *size)
    with torch.no_grad():
        for unit in network.units:
            z = unit.module(z)
        torch.testing.assert_close(z, model.eval()(x), rtol=1e-4, atol=1e-5)
    return network


def test_branches_in_the_models_own_forward() -> None:
    torch.manual_seed(0)
    expected = [("stem", "stem"), ("left", "left", "right"), ("mid", "mid"), ("skip", "skip.first", "skip.second")]
    model = HandWritten()
    check_chain(model, (3, 32, 32), [*expected, ("head", "head")])
    # A wrapper changes the names only: a trunk is not a block.
    wrapped = [tuple(f"1.{name}" for name in unit) for unit in [*expected, ("head", "head")]]
    check_chain(nn.Sequential(nn.Identity(), model), (3, 32, 32), wrapped)


def test_activation_stays_with_the_unit_before_and_pooling_goes_to_the_unit_after() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Hardswish()
    )
    model = nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 2), nn.Softmax(1))
    network = check_chain(model, (3, 16, 16), [(name, name) for name in ("0.0", "0.3", "4")])
    x = torch.randn(2, 3, 16, 16)
    first, second = (unit.module for unit in network.units[:2])
    assert first(x).shape == (2, 4, 14, 14)
    assert float(first(x).min()) == 0
    assert second(first(x)).shape == (2, 4, 5, 5)


class Twice(nn.Module):
    """The same layer at both ends of a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.between = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.shared(self.stem(x)))
        x = torch.relu(self.between(x))
        return self.head(torch.relu(self.shared(x)).mean([2, 3], keepdim=True))


def test_units_that_share_a_layer_are_merged_with_what_is_between() -> None:
    torch.manual_seed(0)
    expected = [("stem", "stem"), ("shared", "shared", "between"), ("head", "head")]
    network = check_chain(Twice(), (3, 8, 8), expected)
    assert [spec.uses for spec in network.table] == [1, 2, 1, 1]


class Decides(nn.Module):
    """Cannot be traced: the way depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.other = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.other(x) if bool(x.abs().sum() > 0) else x


def test_submodule_that_cannot_be_traced_is_one_unit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Decides(), nn.ReLU(), Decides(), nn.Conv2d(4, 2, 1))
    inner = [(str(i), f"{i}.conv", f"{i}.other") for i in (2, 4)]
    check_chain(model, (3, 8, 8), [("0", "0"), *inner, ("5", "5")])


class Constants(nn.Module):
    """A child called `model`, a parameter used in two units and a tensor made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.model = nn.ModuleDict({"model": nn.Conv2d(3, 4, 3), "last": nn.Conv2d(4, 4, 1)})

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.exp()
        x = self.model["model"](x) * scale + torch.tensor(2.0)
        return self.model["last"](x) * scale


def test_constants_do_not_tie_units_together() -> None:
    torch.manual_seed(0)
    network = check_chain(Constants(), (3, 8, 8), [("model.model", "model.model"), ("model.last", "model.last")])
    assert dict(network.table.uncounted) == {"scale": "parameter of Constants, used directly"}


class EarlyBatchSize(nn.Module):
    """The batch size is read at the start and used at the end."""

    def __init__(self, unpack: bool) -> None:
        super().__init__()
        self.unpack = unpack
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        count = x.size(0)
        if self.unpack:
            count, _, _, _ = x.shape
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.view(count, -1))


@pytest.mark.parametrize("unpack", [False, True])
def test_batch_size_read_early_does_not_tie_units_together(unpack: bool) -> None:
    torch.manual_seed(0)
    check_chain(EarlyBatchSize(unpack), (3, 8, 8), [(name, name) for name in ("first", "second", "head")])
