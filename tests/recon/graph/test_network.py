"""Tracing: what a network is made of, and that it stays the same function."""

import hashlib

import pytest
import torch
import torchvision
from captured import of_images
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from hwmodel.errors import InputError
from recon.graph.network import Network

FAMILIES = [
    "resnet18",
    "mobilenet_v2",
    "regnet_x_400mf",
    "mnasnet1_0",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "mobilenet_v3_small",
]


def fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def counted_macs(model: nn.Module, size: tuple[int, int, int]) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(torch.zeros(1, *size))
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", FAMILIES)
def test_macs_equal_torchs_flop_counter(name: str) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None)
    table = of_images(model, (3, 64, 64), name).table
    assert table.macs == counted_macs(model, (3, 64, 64))
    weights = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [layer.n_weights for layer in table] == weights
    assert (table.model, table.input_size) == (name, (3, 64, 64))


def test_published_size_of_resnet18() -> None:
    table = of_images(torchvision.models.resnet18(weights=None), (3, 224, 224)).table
    assert table.macs == 1_814_073_344
    assert table.n_weights == 11_678_912
    first = table[0]
    assert (first.name, first.kernel, first.stride, first.in_size, first.out_size) == (
        *("conv1", (7, 7), (2, 2)),
        *((224, 224), (112, 112)),
    )


def test_the_model_that_goes_in_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(weights=None).train()
    before = fingerprint(model), [type(m) for m in model.modules()], [m.training for m in model.modules()]
    network = of_images(model, (3, 32, 32))
    assert before == (fingerprint(model), [type(m) for m in model.modules()], [m.training for m in model.modules()])
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert any(getattr(module, "inplace", False) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(module.training for module in network.model.modules())
    assert not any(parameter.requires_grad for parameter in network.model.parameters())
    taken = {parameter.data_ptr() for parameter in model.parameters()}
    assert taken.isdisjoint(parameter.data_ptr() for parameter in network.model.parameters())


def test_same_network_twice() -> None:
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(weights=None)
    first, second = of_images(model, (3, 64, 64)), of_images(model, (3, 64, 64))
    assert first.table == second.table
    assert fingerprint(first.model) == fingerprint(second.model)


def test_units_share_layers_with_the_model_and_a_copy_with_its_own_model() -> None:
    torch.manual_seed(0)
    network = of_images(torchvision.models.resnet18(weights=None), (3, 64, 64))
    twin = network.copy()
    for each in (network, twin):
        for unit in each.units:
            inside = set(unit.module.modules())
            assert all(each.layer(name) in inside for name in unit.layers)
    x = torch.randn(2, 3, 64, 64)
    before = network.model(x)
    for name in twin.table.names:
        twin.layer(name).weight.zero_()
    assert torch.equal(network.model(x), before)
    z = x
    for unit in twin.units:
        z = unit.module(z)
    assert torch.equal(z, twin.model(x))
    assert torch.equal(z[0], z[1])
    with pytest.raises(InputError, match="no layer 'layer9'"):
        network.layer("layer9")


def test_every_layer_has_a_bias() -> None:
    network = of_images(
        nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Flatten(), nn.Linear(256, 2, bias=False)), (3, 8, 8)
    )
    assert [network.layer(name).bias.tolist() for name in network.table.names] == [[0] * 4, [0] * 2]


class Undecided(nn.Module):
    """torch.fx cannot trace it: the way depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.odd = nn.Conv2d(4, 4, 1)
        self.even = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        x = self.even(x) if float(x.sum()) >= 0 else self.odd(x)
        return self.fc(x.mean([2, 3]))


def test_untraceable_model_falls_back_to_hooks() -> None:
    torch.manual_seed(0)
    model = Undecided().eval()
    model.bn.running_mean.normal_()
    network = of_images(model, (3, 8, 8))
    assert not network.chained
    assert [(unit.name, unit.layers) for unit in network.units] == [(name, (name,)) for name in ("conv", "even", "fc")]
    assert all(unit.module is network.layer(unit.name) for unit in network.units)
    assert dict(network.table.uncounted) == {"odd": "never called"}
    assert network.table.macs == counted_macs(model, (3, 8, 8))
    assert isinstance(network.model.bn, nn.Identity)
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network.model(x), model(x), rtol=1e-4, atol=1e-5)
    twin = network.copy()
    assert all(unit.module is twin.layer(unit.name) for unit in twin.units)


class FixedBatch(nn.Module):
    """Traces, but the graph holds for the traced batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.second(torch.relu(self.first(x)))}


def test_model_without_a_tensor_as_output_is_not_a_chain() -> None:
    network = of_images(FixedBatch(), (3, 8, 8))
    assert not network.chained
    assert network.table.names == ("first", "second")


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
    assert network.table.macs == counted_macs(model, (3, 8, 8))
    assert len(network.units) == 1
    assert network.chained


def test_layers_that_share_a_weight_share_a_gene() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    model[4].weight = model[0].weight
    network = of_images(model, (3, 8, 8))
    assert [layer.tie for layer in network.table] == ["0", "2", "0"]
    assert network.table.genes == ((0, 2), (1,))
    assert [unit.name for unit in network.units] == ["0", "2", "4"]
    assert network.layer("4").weight is network.layer("0").weight
    twin = network.copy()
    assert twin.layer("4").weight is twin.layer("0").weight


class Mixed(nn.Module):
    """A little of everything that is not quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.line = nn.Conv1d(4, 4, 1)
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.unused = nn.Linear(2, 2)
        self.direct = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.zeros(4))
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.up(self.conv(x))).flatten(2)
        x = self.line(x).transpose(1, 2)
        x = self.attention(x, x, x)[0]
        x = self.recurrent(x)[0].mean(1) * self.scale + self.shift
        return self.head(nn.functional.linear(x, self.direct.weight))


def test_what_is_not_quantized_is_listed() -> None:
    torch.manual_seed(0)
    network = of_images(Mixed(), (3, 6, 6))
    assert network.chained
    assert network.table.names == ("conv", "head")
    assert dict(network.table.uncounted) == {
        "up": "ConvTranspose2d is not quantized",
        "attention": "MultiheadAttention is not quantized",
        "attention.out_proj": "NonDynamicallyQuantizableLinear is not called: its parameters are used directly",
        "line": "Conv1d is not quantized",
        "recurrent": "LSTM is not quantized",
        "unused": "never called",
        "direct": "Linear is not called: its parameters are used directly",
        "scale": "parameter of Mixed, used directly",
        "shift": "parameter of Mixed, used directly",
        "norm": "GroupNorm is not quantized",
    }


class Standardised(nn.Conv2d):
    """Computes with another weight than the one that it holds."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)


def test_convolution_that_computes_something_else_is_listed() -> None:
    network = of_images(nn.Sequential(Standardised(3, 4, 1), nn.Conv2d(4, 2, 1)), (3, 8, 8))
    assert network.table.names == ("1",)
    assert [name for name, _ in network.table.uncounted] == ["0.weight", "0.bias"]


def test_parametrized_weight_is_made_plain() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)).eval()
    network = of_images(model, (3, 8, 8))
    assert network.table.names == ("0",)
    assert network.table.uncounted == ()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(network.model(x), model(x), rtol=1e-4, atol=1e-5)


def test_single_layer_and_half_precision() -> None:
    network = of_images(nn.Conv2d(3, 4, 3).half(), (3, 8, 8))
    assert network.table.names == ("0",)
    assert network.layer("0").weight.dtype == torch.float32


def test_linear_positions_are_counted() -> None:
    model = nn.Sequential(nn.Flatten(2), nn.Linear(64, 8))
    (layer,) = of_images(model, (3, 8, 8)).table
    assert (layer.kind, layer.in_size, layer.out_size) == ("linear", (3, 1), (3, 1))
    assert layer.macs == counted_macs(model, (3, 8, 8)) == 3 * 64 * 8


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1)), (1, 8, 8), r"toy does not run on an image of size \(1, 8, 8\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(10, 2)), (3, 8, 8), "toy does not run"),
        (nn.ReLU(), (3, 8, 8), "toy calls no convolution"),
        (nn.Conv1d(8, 4, 1), (3, 8, 8), "toy"),
    ],
)
def test_bad_models(model: nn.Module, size: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        of_images(model, size, "toy")
    assert "\n" not in str(caught.value)


def test_network_is_a_frozen_record() -> None:
    network = of_images(nn.Conv2d(3, 4, 1), (3, 8, 8))
    assert isinstance(network, Network)
    with pytest.raises(AttributeError):
        network.chained = False  # type: ignore[misc]
