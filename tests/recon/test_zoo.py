"""Every torchvision classifier, and small networks of every kind, get in: layers, MACs, outputs and blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode
from zoo_networks import SMALL, settled

from hwmodel import BitConfig, Precision
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.graph.unit_by_unit import Passing
from recon.quantizers.quantized import plainly_rounded, quantized

CLASSIFIERS: list[str] = torchvision.models.list_models(module=torchvision.models)
FAST = ("convnext_tiny", "mobilenet_v2", "resnet18", "squeezenet1_1", "swin_t", "vit_b_32")
GIANT = (
    *("convnext_large", "efficientnet_v2_l", "regnet_y_128gf", "regnet_y_32gf", "vgg13", "vgg16", "vgg19"),
    *("vit_h_14", "vit_l", "wide_resnet101_2"),
)
UNUSED = ("aux1.", "aux2.", "AuxLogits.")  # in eval mode


def marks(name: str) -> Any:
    if name.startswith(GIANT):
        return pytest.mark.skip("weights of more than 400 MB, of a network whose smaller siblings are tried")
    return () if name in FAST else pytest.mark.slow


def classifier(name: str) -> tuple[nn.Module, Tensor]:
    """A classifier with random weights, and five images as small as it takes."""
    options: dict[str, Any] = {"image_size": 64} if name.startswith("vit_") else {}
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    side = {"maxvit_t": 224, "inception_v3": 75, "alexnet": 63}.get(name, 64 if name.startswith("vit_") else 32)
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options).eval()
    return model, torch.randn(5, 3, side, side)


def counted_macs(model: nn.Module, samples: Samples) -> int:
    """What torch counts for one sample: with gradients, attention takes the path whose products it knows."""
    args, kwargs = samples[:1].call
    counter = FlopCounterMode(display=False)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model.requires_grad_()(*args, **kwargs)
    return counter.get_total_flops() // 2


def held_weights(model: nn.Module) -> int:
    """The weights of all convolutions, linear maps, attention projections and embeddings that are used."""
    weights: dict[int, Tensor] = {}
    for name, module in model.named_modules():
        kinds = nn.modules.conv._ConvNd | nn.Linear | nn.Embedding
        weight = module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else None
        weight = module.weight if isinstance(module, kinds) else weight
        if weight is not None and not name.startswith(UNUSED):
            weights[id(weight)] = weight
    return sum(weight.numel() for weight in weights.values())


def check_outputs(network: Network, model: nn.Module, samples: Samples, exactness: float = 1e-4) -> None:
    """The network computes what the model does for any number of samples, and unit by unit what it does at once."""
    for count in (1, 2, 5):
        args, kwargs = samples[:count].call
        with torch.no_grad():
            expected = tree_flatten(model(*args, **kwargs))[0]
            found = tree_flatten(network.model(*args, **kwargs))[0]
            passing = Passing(network, network.leaves(samples[:count]))
            for unit in network.units:
                passing.write(unit, unit.module(*passing.read(unit)))
        for wanted, got, unitwise in zip(expected, found, passing.outputs(), strict=True):
            assert got.shape == wanted.shape
            assert float((got - wanted.float()).abs().max()) <= exactness * float(wanted.float().abs().max())
            assert torch.equal(got, unitwise)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in CLASSIFIERS])
def test_every_torchvision_classifier(name: str) -> None:
    model, images = classifier(name)
    network = capture(model, images[:2], name)
    assert network.table.n_weights == held_weights(model)
    assert sorted(layer for unit in network.units for layer in unit.layers) == sorted(network.table.names)
    assert max(len(unit.layers) for unit in network.units) <= 12
    check_outputs(network, model, Samples.of(images))
    assert network.table.macs == counted_macs(model, Samples.of(images))


@pytest.fixture(scope="module", params=SMALL)
def small(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Network, Samples]:
    """A small network, settled and captured, and eight samples."""
    make, samples, _ = SMALL[request.param]
    torch.manual_seed(0)
    model = settled(make(), samples(8))
    return request.param, model, capture(model, samples(3), request.param), Samples.of(samples(8))


def test_small_networks_compute_the_same(small: tuple[str, nn.Module, Network, Samples]) -> None:
    name, model, network, samples = small
    check_outputs(network, model, samples, 0.02 if name == "bfloat16" else 1e-4)


BLOCKS = {  # by network: the layers of its units
    "u-net": (
        *("down1.first.0 down1.second.0", "down2.first.0 down2.second.0", "bottom.first.0 bottom.second.0", "up2"),
        *("merge2.first.0 merge2.second.0", "up1", "merge1.first.0 merge1.second.0", "head"),
    ),
    "two inputs": ("image.0.0 image.1.0 numbers.0", "head.0", "head.2"),
    "two heads": ("body.0.0", "body.1.0", "classes values"),
    "one channel": ("0.0", "1.0", "3"),
    "sound": ("stem", "dilated.0", "dilated.1", "dilated.2", "head"),
    "video": ("0", "3", "5", "9"),
    "bare attention": (
        "embed",
        *(f"blocks.{k}.attention.qkv blocks.{k}.attention.out blocks.{k}.w1 blocks.{k}.w2" for k in range(2)),
        "head",
    ),
    "hrnet": (
        *("stem.0", "transition.0", "stages.0.fine.conv1 stages.0.fine.conv2"),
        *("stages.0.coarse.conv1 stages.0.coarse.conv2", "stages.0.up.0 stages.0.down.0"),
        *("stages.1.fine.conv1 stages.1.fine.conv2", "stages.1.coarse.conv1 stages.1.coarse.conv2"),
        *("stages.1.up.0 stages.1.down.0", "head"),
    ),
    "pixel shuffle": ("head", "body.0.conv1 body.0.conv2", "body.1.conv1 body.1.conv2", "tail.0"),
    "shared weights": ("embed", "block.0 block.2", "twin", "head"),
    "group norm": ("body.0", "body.3", "head"),
    "weight norm": ("hooked", "parametrized", "spectral", "head"),
    "bfloat16": ("0.0", "1.conv1 1.conv2", "2.0", "4"),
    "float64": ("0.0", "1.conv1 1.conv2", "2.0", "4"),
    "data parallel": ("0.0", "1.0", "3"),
    "masked encoder": (
        "embed",
        *(
            f"layers.{k}.self_attn.in_proj_weight layers.{k}.self_attn.out_proj layers.{k}.linear1 layers.{k}.linear2"
            for k in range(2)
        ),
        "head",
    ),
    "decoder": (
        "embed_tokens",
        *(" ".join(f"layers.{k}.{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")) for k in range(2)),
        "lm_head",
    ),
    "binary maps": ("0.0", "1"),
}


def test_small_networks_have_real_blocks(small: tuple[str, nn.Module, Network, Samples]) -> None:
    name, _, network, _ = small
    print(f"\n{name}")
    for unit in network.units:
        print(f"  {unit.name}: {', '.join(unit.layers)}; {', '.join(unit.reads)} -> {', '.join(unit.writes)}")
    assert tuple(" ".join(unit.layers) for unit in network.units) == BLOCKS[name]


def test_small_networks_count_all_weights(small: tuple[str, nn.Module, Network, Samples]) -> None:
    name, model, network, _ = small
    ties = {layer.tie: layer.n_weights for layer in network.table}
    bare = {"bare attention": 2 * 16 * 16 * (3 + 1 + 2 + 2)}
    assert sum(ties.values()) == held_weights(model) + bare.get(name, 0)


@pytest.mark.parametrize("name", ["u-net", "video", "sound", "bare attention", "masked encoder", "decoder", "hrnet"])
def test_small_networks_macs(name: str) -> None:
    make, samples, _ = SMALL[name]
    model = make().eval()
    assert capture(model, samples(3), name).table.macs == counted_macs(model, Samples.of(samples(1)))


def test_quantizers_keep_the_order_of_units(small: tuple[str, nn.Module, Network, Samples]) -> None:
    _, _, network, samples = small
    config = BitConfig.uniform(network.table.names, Precision(8, 8))
    low_bit = quantized(network, plainly_rounded(network, network.leaves(samples), config))
    assert [unit.name for unit in low_bit.units] == [unit.name for unit in network.units]
    assert [unit.writes for unit in low_bit.units] == [unit.writes for unit in network.units]


def test_shared_weights_keep_the_names_of_their_modules() -> None:
    make, samples, _ = SMALL["decoder"]
    table = capture(make(), samples(3)).table
    assert {table.names[0], table.names[-1]} == {"embed_tokens", "lm_head"}
    assert table[-1].tie == "embed_tokens"
    assert not {"embed_tokens", "lm_head"} & set(dict(table.uncounted))


def test_tables_that_the_code_computes_are_not_stored() -> None:
    make, samples, _ = SMALL["decoder"]
    network = capture(make(), samples(3))
    assert "rates" not in dict(network.table.uncounted)
    assert not any("rates" in name for name in network.module.state_dict())
    assert any(name.endswith("rates") for name, _ in network.module.named_buffers())


def test_a_copy_keeps_the_precision_of_its_samples() -> None:
    make, samples, _ = SMALL["float64"]
    network = capture(make(), samples(3))
    (leaf,) = network.leaves(Samples.of(samples(2)))
    assert leaf.dtype == network.model(samples(2)).dtype == torch.float32
