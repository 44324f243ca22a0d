"""Sensitivity and reconstruction of every family of networks: nearer to float than plain rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as zoo
from torch import nn
from torch.utils._pytree import tree_leaves
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from zoo_networks import SMALL, Zoo, maps, settled

from hwmodel import BitConfig, Precision
from mpsearch.export.packed import load_packed, save_packed
from mpsearch.sensitivity.measure import measure
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.likelihood.heads import Categorical
from recon.likelihood.likelihood import Likelihood
from recon.quantizers.quantized import QuantizedLayers, plainly_rounded, quantized
from recon.reconstruct import reconstruct
from recon.settings import Settings

CLASSES = Likelihood((Categorical(),))
SAMPLES = 48
W4, W4A8 = Precision(4), Precision(4, 8)


def small_alexnet() -> nn.Module:
    """Its classifier has 10,000 inputs and takes minutes: here it has 256."""
    model = zoo.AlexNet(num_classes=10)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier[1], model.classifier[4], model.classifier[6] = (
        nn.Linear(256, 64),
        nn.Linear(64, 64),
        nn.Linear(64, 10),
    )
    return model


def small_vgg() -> nn.Module:
    """A VGG with a few narrow layers."""
    model = zoo.VGG(zoo.vgg.make_layers([8, "M", 16, "M", 16, "M"], batch_norm=True), num_classes=10)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier[0], model.classifier[3], model.classifier[6] = (
        nn.Linear(16, 64),
        nn.Linear(64, 64),
        nn.Linear(64, 10),
    )
    return model


def small_mobilenet_v3() -> nn.Module:
    """Three inverted residuals, with squeeze-and-excitation and both activations."""
    block = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    blocks = [
        block(16, 3, 16, 16, True, "RE", 2),
        block(16, 5, 32, 24, False, "HS", 2),
        block(24, 3, 32, 24, True, "HS", 1),
    ]
    return zoo.MobileNetV3(blocks, 64, num_classes=10)


def small_efficientnet_v2() -> nn.Module:
    """Fused and plain inverted residuals."""
    blocks = [
        FusedMBConvConfig(1, 3, 1, 16, 16, 1),
        FusedMBConvConfig(4, 3, 2, 16, 24, 1),
        MBConvConfig(4, 3, 2, 24, 32, 2),
    ]
    return zoo.EfficientNet(blocks, 0.0, num_classes=10, last_channel=64)


def small_swin(**options: Any) -> nn.Module:
    """Two stages, the second block of each with shifted windows."""
    return zoo.SwinTransformer([4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=10, stochastic_depth_prob=0.0, **options)


def small_vit() -> nn.Module:
    """Two blocks; the head, zero when it is new, has values."""
    model = zoo.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)
    nn.init.normal_(model.heads.head.weight, std=0.1)
    return model


def small_maxvit() -> nn.Module:
    """A block of either of two sizes: convolutions, attention in windows and on grids."""
    options = {"stochastic_depth_prob": 0.0, "num_classes": 10}
    return zoo.MaxVit((32, 32), 16, 2, [16, 32], [1, 1], 8, **options)


def convnext() -> nn.Module:
    """Two stages."""
    return zoo.ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 1)], num_classes=10)


def regnet() -> nn.Module:
    """Grouped bottlenecks with squeeze-and-excitation."""
    return zoo.RegNet(BlockParams([1, 2], [16, 32], [8, 8], [1.0, 1.0], [2, 2], 0.25), num_classes=10)


def images(side: int) -> Callable[[int], Any]:
    return lambda count: maps(count, 3, side, side)


def family(
    make: Callable[..., nn.Module], side: int, **options: Any
) -> tuple[Callable[[], nn.Module], Any, Likelihood]:
    return (lambda: make(**options)), images(side), CLASSES


TORCHVISION: Zoo = {
    "alexnet": family(small_alexnet, 63),
    "vgg": family(small_vgg, 16),
    "squeezenet": family(zoo.squeezenet1_1, 32, num_classes=10),
    "mobilenet_v3": family(small_mobilenet_v3, 32),
    "efficientnet_v2": family(small_efficientnet_v2, 32),
    "mnasnet": family(zoo.MNASNet, 32, alpha=0.2, num_classes=10, dropout=0.0),
    "shufflenet": family(
        zoo.ShuffleNetV2, 32, stages_repeats=[2, 2, 2], stages_out_channels=[8, 16, 32, 64, 64], num_classes=10
    ),
    "regnet": family(regnet, 32),
    "densenet": family(zoo.DenseNet, 32, growth_rate=8, block_config=(2, 3), num_init_features=16, num_classes=10),
    "convnext": family(convnext, 32),
    "swin": family(small_swin, 32),
    "swin_v2": family(small_swin, 32, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
    "vit": family(small_vit, 32),
    "maxvit": family(small_maxvit, 32),
}
LARGE: Zoo = {
    "googlenet": family(zoo.googlenet, 64, num_classes=10, init_weights=False),
    "inception": family(zoo.inception_v3, 75, num_classes=10, init_weights=False, aux_logits=False),
    "mobilenet_v3_small": family(zoo.mobilenet_v3_small, 64, num_classes=10),
    "shufflenet_v2_x0_5": family(zoo.shufflenet_v2_x0_5, 64, num_classes=10),
}
ALL: Zoo = {**SMALL, **TORCHVISION, **LARGE}
QUICK = (*SMALL, "efficientnet_v2", "convnext", "vit")
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ALL]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, Network, Samples, Samples, Likelihood]:
    """A network whose batch norms have seen data, samples to calibrate with, and others."""
    make, samples, likelihood = ALL[request.param]
    torch.manual_seed(0)
    drawn = samples(2 * SAMPLES)
    model = settled(make(), drawn)
    drawn = Samples.of(drawn)
    network = capture(model, drawn[:3], request.param)
    return request.param, network, drawn[:SAMPLES], drawn[SAMPLES:], likelihood


def divergence(network: Network, layers: QuantizedLayers, samples: Samples, likelihood: Likelihood) -> float:
    """The mean divergence of a finished network from float, in nats."""
    leaves = network.leaves(samples)
    with torch.no_grad():
        outputs = quantized(network, layers).outputs_of(*leaves)
        return float(likelihood.divergence(network.outputs_of(*leaves), outputs).mean())


def test_sensitivity_sees_every_layer(case: tuple[str, Network, Samples, Samples, Likelihood]) -> None:
    _, network, samples, _, likelihood = case
    scores = measure(network, samples, [W4, W4A8], 0, "key", likelihood=likelihood)
    assert np.isfinite(scores.score).all()
    assert (np.abs(scores.score).max((0, 2)) > 0).all()


@pytest.mark.parametrize("precision", [pytest.param(W4, marks=pytest.mark.slow), W4A8], ids=str)
def test_it_ends_nearer_to_float_than_plain_rounding(
    case: tuple[str, Network, Samples, Samples, Likelihood], precision: Precision
) -> None:
    name, network, samples, others, likelihood = case
    config = BitConfig.uniform(network.table.names, precision)
    result = reconstruct(network, samples, config, Settings(steps=10, batch=8), likelihood=likelihood)
    plain = plainly_rounded(network, network.leaves(samples), config)
    before, after = (divergence(network, layers, others, likelihood) for layers in (plain, result.layers))
    print(f"\n{name} {precision}: {before:.5f} -> {after:.5f}")
    assert before > 1e-6
    assert after < before


@pytest.mark.parametrize("name", SMALL)
def test_its_packed_file_fills_a_new_module(name: str, tmp_path: Path) -> None:
    make, samples, _ = SMALL[name]
    network = capture(make().eval(), samples(3), name)
    drawn = Samples.of(samples(8))
    config = BitConfig.uniform(network.table.names, W4A8)
    layers = plainly_rounded(network, network.leaves(drawn), config)
    path = tmp_path / "model.safetensors"
    save_packed(path, network, f"file.py:{name}", layers)
    args, kwargs = drawn.call
    with torch.no_grad():
        expected = quantized(network, layers).model(*args, **kwargs)
        found = load_packed(path, model=make())(*args, **kwargs)
    for ours, theirs in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        torch.testing.assert_close(ours, theirs)
