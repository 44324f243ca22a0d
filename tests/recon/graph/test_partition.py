"""The block partition of every family of networks, found in the graph alone."""

from __future__ import annotations

import pytest
import torch
import torchvision
from captured import of_images, require_same
from families import SIDE, small
from torch import Tensor, nn

from recon.graph.network import Network, capture


def numbered(pattern: str, *counts: int) -> list[str]:
    """`pattern.format(stage, i)` for i below each stage's count, stages numbered from 1."""
    return [pattern.format(stage, i) for stage, count in enumerate(counts, 1) for i in range(count)]


def dense(*counts: int) -> list[str]:
    """The layers of dense blocks with so many layers, transitions between them."""
    names: list[str] = []
    for block, count in enumerate(counts, 1):
        names += [f"features.denseblock{block}.denselayer{i}" for i in range(1, count + 1)]
        names += [f"features.transition{block}.conv"] if block < len(counts) else []
    return names


MAXVIT = ("MBconv", "window_attention", "grid_attention")
PARTITIONS = {
    "resnet": ["conv1", *numbered("layer{}.{}", 1, 2, 1, 1), "fc"],
    "mobilenet_v2": ["features.0.0", *(f"features.{i}" for i in range(1, 4)), "features.4.0", "classifier.1"],
    "mobilenet_v3": [
        *("features.0.0", *(f"features.{i}" for i in range(1, 5))),
        *("features.5.0", "classifier.0", "classifier.3"),
    ],
    "efficientnet": [
        *("features.0.0", "features.1.0.block.0.0", "features.2.0", "features.2.1", "features.3.0", "features.3.1"),
        *("features.4.0", "classifier.1"),
    ],
    "regnet": ["stem.0", *numbered("trunk_output.block{0}.block{0}-{1}", 1, 2), "fc"],
    "squeezenet": ["features.0", *(f"features.{i}" for i in (3, 4, 6, 7, 9, 10, 11, 12)), "classifier.1"],
    "shufflenet": ["conv1.0", *numbered("stage{}.{}", 0, 2, 1, 1), "conv5.0", "fc"],
    "densenet": ["features.conv0", *dense(3, 2), "classifier"],
    "googlenet": ["0.conv", "1", "2", "5"],
    "convnext": ["features.0.0", "features.1.0", "features.1.1", "features.2.1", "features.3.0", "classifier.2"],
    "vit": ["conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(2)), "heads.head"],
    "swin": ["features.0.0", "features.1.0", "features.1.1", "features.2.reduction", "features.3.0", "head"],
    "swin_v2": ["features.0.0", "features.1.0", "features.2.reduction", "features.3.0", "head"],
    "maxvit": [
        *("stem.0.0", "stem.1.0"),
        *(f"blocks.0.layers.0.layers.{part}" for part in MAXVIT),
        *("classifier.3", "classifier.5"),
    ],
    "u-net": ["down1", "down2", "bottom", "up2", "left2", "up1", "left1", "head"],
    "hrnet": [
        *("stem", "fork"),
        *(f"stage.{i}.{part}" for i in (0, 1) for part in ("branches.0.0", "branches.1.0", "up.0")),
        "head",
    ],
    "pyramid": ["stem", "one", "two.0", "two.1", "pyramid", "head.0"],
    "pixel shuffle": ["first", "body.0", "body.1", "last"],
}  # fmt: skip


def require_partition(network: Network, names: list[str]) -> None:
    print(f"\n{network.table.model}: " + ", ".join(f"{unit.name} ({len(unit.layers)})" for unit in network.units))
    assert [unit.name for unit in network.units] == names
    assert tuple(layer for unit in network.units for layer in unit.layers) == network.table.names
    assert all(spec.block == unit.name for unit in network.units for spec in network.table if spec.name in unit.layers)


@pytest.mark.parametrize("name", PARTITIONS)
def test_partition_of_family(name: str) -> None:
    require_partition(small(name)[1], PARTITIONS[name])


@pytest.mark.parametrize("name", PARTITIONS)
def test_units_one_after_another_are_the_model(name: str) -> None:
    model, network = small(name)
    require_same(network, model, torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))


FULL = {
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
    "densenet121": ["features.conv0", *dense(6, 12, 24, 16), "classifier"],
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


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_partition_of_full_size(name: str) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "vgg11") else {}
    model = getattr(torchvision.models, name)(weights=None, **options)
    network = of_images(model, (3, 64, 64), name)
    require_partition(network, FULL[name])
    require_same(network, model, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))


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


def check_units(model: nn.Module, size: tuple[int, ...], expected: list[tuple[str, ...]]) -> Network:
    network = of_images(model, size)
    assert [(unit.name, *unit.layers) for unit in network.units] == expected
    require_same(network, model, torch.randn(3, *size))
    return network


def test_branches_in_the_models_own_forward() -> None:
    torch.manual_seed(0)
    expected = [("stem", "stem"), ("left", "left", "right"), ("mid", "mid"), ("skip", "skip.first", "skip.second")]
    model = HandWritten()
    check_units(model, (3, 32, 32), [*expected, ("head", "head")])
    # A wrapper changes the names only: a trunk is not a block.
    wrapped = [tuple(f"1.{name}" for name in unit) for unit in [*expected, ("head", "head")]]
    check_units(nn.Sequential(nn.Identity(), model), (3, 32, 32), wrapped)


def test_activation_stays_with_the_unit_before_and_pooling_goes_to_the_unit_after() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Hardswish()
    )
    model = nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 2), nn.Softmax(1))
    network = check_units(model, (3, 16, 16), [(name, name) for name in ("0.0", "0.3", "4")])
    x = torch.randn(2, 3, 16, 16)
    first, second = (unit.module for unit in network.units[:2])
    (y,) = first(x)
    assert y.shape == (2, 4, 14, 14)
    assert float(y.min()) == 0
    assert second(y)[0].shape == (2, 4, 5, 5)


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
    network = check_units(Twice(), (3, 8, 8), expected)
    assert [spec.uses for spec in network.table] == [1, 2, 1, 1]


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
    network = check_units(Constants(), (3, 8, 8), [("model.model", "model.model"), ("model.last", "model.last")])
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
    check_units(EarlyBatchSize(unpack), (3, 8, 8), [(name, name) for name in ("first", "second", "head")])


class Masked(nn.Module):
    """An encoder of padded sentences: ids and a mask that is alive all along, and is made of the ids."""

    def __init__(self, batch_first: bool, causal: bool = False) -> None:
        super().__init__()
        self.batch_first, self.causal = batch_first, causal
        self.words, self.places = nn.Embedding(11, 16), nn.Parameter(torch.randn(6, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        padding = ids == 0
        x = self.words(ids) + self.places
        x = x if self.batch_first else x.transpose(0, 1)
        causal = nn.Transformer.generate_square_subsequent_mask(6)
        how = {"mask": causal, "is_causal": True} if self.causal else {"src_key_padding_mask": padding}
        x = self.encoder(x, **how)
        x = x if self.batch_first else x.transpose(0, 1)
        return {"tags": self.head(x), "mean": x.mean(1)}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch_first", [True, False])
def test_encoders_with_a_mask_are_blocks_and_samples_may_be_on_any_axis_between_them(
    batch_first: bool, causal: bool
) -> None:
    torch.manual_seed(0)
    model = Masked(batch_first, causal)
    ids = torch.randint(1, 11, (5, 6), generator=torch.Generator().manual_seed(0))
    ids[1:4, 4:] = 0
    network = capture(model, ids)
    require_partition(network, ["words", *(f"encoder.layers.{i}" for i in range(3)), "head"])
    require_same(network, model, ids)
    assert [len(unit.layers) for unit in network.units] == [1, 4, 4, 4, 1]
    assert all(len(z) == 5 for z in network.module(ids))


class Rotary(nn.Module):
    """Blocks that all read one table of angles, made from the positions, as a language model does."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(RotaryBlock() for _ in range(2))
        self.head = nn.Linear(8, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        angles = torch.arange(ids.shape[1])[:, None] * torch.tensor([1.0, 0.1])
        table = angles.cos(), angles.sin()
        x = self.words(ids)
        for block in self.blocks:
            x = block(x, table)
        return self.head(x)


class RotaryBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.RMSNorm(8), nn.Linear(8, 24, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).unbind(2)
        q, k = turned(q, table), turned(k, table)
        y = nn.functional.scaled_dot_product_attention(*(z.transpose(1, 2) for z in (q, k, v)), is_causal=True)
        return x + self.out(y.transpose(1, 2).flatten(2))


def turned(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (part[:, None] for part in table)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def test_a_rotary_table_does_not_tie_blocks_together() -> None:
    torch.manual_seed(0)
    model, ids = Rotary(), torch.randint(0, 11, (4, 7))
    network = capture(model, ids)
    require_partition(network, ["words", "blocks.0", "blocks.1", "head"])
    require_same(network, model, ids)
    assert [unit.reads for unit in network.units][1:] == [unit.writes for unit in network.units][:-1]


def test_units_read_and_write_several_tensors() -> None:
    _, network = small("u-net")
    reads = {unit.name: unit.reads for unit in network.units}
    writes = {unit.name: unit.writes for unit in network.units}
    assert reads["up2"] == (*writes["down2"], *writes["bottom"])
    assert reads["up1"] == (*writes["down1"], *writes["left2"])
    _, network = small("hrnet")
    fused = next(unit for unit in network.units if unit.name == "stage.0.up.0")
    assert len(fused.reads) == len(fused.writes) == 2
