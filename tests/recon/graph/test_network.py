"""What a network is made of: its layer table, what is not quantized, and that nothing is shared with the model."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torchvision
from captured import counted_macs, of_images, require_same, unit_by_unit
from families import SIDE, SMALL, small
from torch import Tensor, nn

from hwmodel.errors import InputError
from recon.graph.network import Network, capture
from recon.graph.units import Unit

WEIGHTS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.MultiheadAttention)
FULL = {
    "resnet18": {},
    "resnet50": {},
    "mobilenet_v2": {},
    "regnet_x_400mf": {},
    "mnasnet1_0": {},
    "squeezenet1_1": {},
    "shufflenet_v2_x1_0": {},
    "efficientnet_b0": {},
    "mobilenet_v3_small": {},
    "alexnet": {},
    "vgg11_bn": {},
    "densenet121": {},
    "googlenet": {"init_weights": True, "aux_logits": False},
    "inception_v3": {"init_weights": False, "aux_logits": False},
}


def fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def held_weights(model: nn.Module) -> int:
    """Weights of all convolutions, linear maps, embeddings and attention projections that a model holds."""
    parts = [module for module in model.modules() if isinstance(module, WEIGHTS)]
    weights = {p for part in parts for p in part.parameters() if p.dim() > 1}
    return sum(p.numel() for p in weights)


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_is_in_the_table_and_macs_are_those_of_torch(name: str) -> None:
    model, network = small(name)
    assert network.table.n_weights == held_weights(model)
    assert network.table.macs == counted_macs(model, torch.zeros(1, 3, SIDE, SIDE))
    assert (network.table.model, network.table.inputs) == (name, ((3, SIDE, SIDE),))
    modules = {path for path, _ in model.named_modules()} | {path for path, _ in model.named_parameters()}
    assert set(network.table.names) <= modules
    uncounted = [path for path, _ in network.table.uncounted]
    assert len(set(uncounted)) == len(uncounted)
    assert set(uncounted) <= modules | {path for path, _ in model.named_buffers()}
    assert not set(uncounted) & set(network.table.names)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size(name: str) -> None:
    torch.manual_seed(0)
    side = 96 if name == "inception_v3" else 64
    model = getattr(torchvision.models, name)(weights=None, **FULL[name]).eval()
    network = of_images(model, (3, side, side), name)
    assert network.table.n_weights == held_weights(model)
    assert network.table.macs == counted_macs(model, torch.zeros(1, 3, side, side))
    require_same(network, model, torch.randn(2, 3, side, side))


@pytest.mark.slow
def test_published_size_of_resnet18() -> None:
    table = of_images(torchvision.models.resnet18(weights=None), (3, 224, 224)).table
    assert table.macs == 1_814_073_344
    assert table.n_weights == 11_678_912
    first = table[0]
    assert (first.name, first.kernel, first.stride, first.in_size, first.out_size) == (
        *("conv1", (7, 7), (2, 2)),
        *((224, 224), (112, 112)),
    )


def test_layers_that_read_constants_alone_are_layers() -> None:
    """SwinV2 computes position biases by a small network from a table of coordinates, whatever the image."""
    model, network = small("swin_v2")
    inside = {"features.1.0.attn.cpb_mlp.0", "features.1.0.attn.cpb_mlp.2"}
    layers = {spec.name: spec for spec in network.table if spec.name in inside}
    assert set(layers) == inside
    axes = network.sample_axes()
    assert all(axes[name] is None for name in inside)
    assert axes["features.1.0.attn.qkv"] is not None
    positions = (2 * 4 - 1) ** 2  # relative places in windows of 4 × 4, the same for every window and image
    for spec in layers.values():
        assert spec.macs == spec.n_weights * positions
    before = network.layer("features.1.0.attn.cpb_mlp.2").weight.clone()
    twin = network.copy()
    twin.layer("features.1.0.attn.cpb_mlp.2").weight.data += 1
    assert torch.equal(network.layer("features.1.0.attn.cpb_mlp.2").weight, before)
    x = torch.randn(2, 3, SIDE, SIDE)
    assert not torch.allclose(twin.model(x), model(x))


def test_the_model_that_goes_in_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = SMALL["u-net"]().train()
    before = fingerprint(model), [type(m) for m in model.modules()], [m.training for m in model.modules()]
    network = of_images(model, (3, SIDE, SIDE))
    assert before == (fingerprint(model), [type(m) for m in model.modules()], [m.training for m in model.modules()])
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(parameter.requires_grad for parameter in network.model.parameters())
    taken = {tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()}
    assert taken.isdisjoint(tensor.data_ptr() for tensor in network.module.state_dict().values() if tensor.numel())


def test_nothing_is_held_that_is_not_read() -> None:
    _, network = small("mobilenet_v2")
    held = {name for name, _ in (*network.module.named_parameters(), *network.module.named_buffers())}
    assert held == {f"{name}.{part}" for name in network.table.names for part in ("weight", "bias")}


def test_units_share_layers_with_the_network_and_a_copy_with_itself() -> None:
    _, network = small("resnet")
    twin = network.copy()
    for each in (network, twin):
        for unit in each.units:
            inside = set(unit.module.modules())
            assert all(each.layer(name) in inside for name in unit.layers)
    x = torch.randn(2, 3, SIDE, SIDE)
    before = network.model(x)
    for name in twin.table.names:
        twin.layer(name).weight.zero_()
    assert torch.equal(network.model(x), before)
    z = unit_by_unit(twin, x)[""]
    assert torch.equal(z, twin.model(x))
    assert torch.equal(z[0], z[1])
    with pytest.raises(InputError, match="no layer 'layer9'"):
        network.layer("layer9")


class Twice(nn.Module):
    def __init__(self, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(2) if pool else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(self.conv(x)))


@pytest.mark.parametrize("pool", [False, True])
def test_layer_called_twice(pool: bool) -> None:
    model = Twice(pool)
    network = of_images(model, (3, 8, 8))
    (layer,) = network.table
    assert (layer.name, layer.tie, layer.block) == ("conv", "conv", "conv")
    assert (layer.uses, layer.out_size) == ((1, (80, 1)) if pool else (2, (8, 8)))
    assert network.table.macs == counted_macs(model, torch.zeros(1, 3, 8, 8))
    assert len(network.units) == 1
    assert network.lone_layers() == ()


def test_layers_that_share_a_weight_share_a_gene() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    model[4].weight = model[0].weight
    network = of_images(model, (3, 8, 8))
    assert [layer.tie for layer in network.table] == ["0", "2", "0"]
    assert network.table.genes == ((0, 2), (1,))
    assert [unit.name for unit in network.units] == ["0", "2", "4"]
    assert torch.equal(network.layer("4").weight, network.layer("0").weight)
    assert [spec.name for spec in network.lone_layers()] == ["2"]
    require_same(network, model, torch.randn(4, 3, 8, 8))


class Mixed(nn.Module):
    """A little of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.line = nn.Conv1d(4, 4, 1)
        self.recurrent = nn.GRU(4, 4, batch_first=True)
        self.unused = nn.Linear(2, 2)
        self.direct = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.zeros(4))
        self.register_buffer("made", torch.ones(4), persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.norm = nn.GroupNorm(2, 4)
        self.act = nn.PReLU()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.up(self.conv(x))))
        x = self.line(x.flatten(2)).transpose(1, 2)
        x = self.attention(x, x, x)[0]
        x = self.recurrent(x)[0].mean(1) * self.scale + self.shift * self.made
        return self.head(nn.functional.linear(x, self.direct.weight))


def test_what_is_not_quantized_is_listed() -> None:
    torch.manual_seed(0)
    model = Mixed()
    network = of_images(model, (3, 2, 2))
    require_same(network, model, torch.randn(3, 3, 2, 2))
    names = [*("conv", "up", "line", "attention.in_proj_weight", "attention.out_proj"), "direct", "head"]
    assert [name for name in network.table.names if not name.startswith("recurrent")] == names
    uncounted = dict(network.table.uncounted)
    assert {name: uncounted[name] for name in uncounted if not name.startswith("recurrent")} == {
        "unused": "never used: it is not stored",
        "scale": "parameter of Mixed, used directly",
        "shift": "parameter of Mixed, used directly",
        "norm": "GroupNorm is not quantized",
        "act": "PReLU is not quantized",
    }


def test_a_lone_layer_has_the_name_of_its_weight() -> None:
    network = of_images(nn.Conv2d(3, 4, 3), (3, 8, 8))
    assert network.table.names == ("weight",)
    assert [unit.name for unit in network.units] == ["weight"]


def test_positions_of_linear_layers_are_counted() -> None:
    (layer,) = of_images(nn.Sequential(nn.Flatten(2), nn.Linear(64, 8)), (3, 8, 8)).table
    assert (layer.kind, layer.in_size, layer.out_size, layer.macs) == ("linear", (3, 1), (3, 1), 3 * 64 * 8)


def test_records_are_frozen() -> None:
    network = capture(nn.Conv2d(3, 4, 1), torch.zeros(2, 3, 8, 8))
    assert isinstance(network, Network)
    with pytest.raises(AttributeError):
        network.units = ()  # type: ignore[misc]
    with pytest.raises(ValueError, match="no layers"):
        Unit("empty", (), network.module, (), (), ())
