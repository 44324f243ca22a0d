"""Every torchvision family survives W4A8 at small size."""

from __future__ import annotations

import pytest
import torch
import torchvision
from captured import of_images
from torch import Tensor, nn

from hwmodel import BitConfig, Precision
from recon.quantizers.quantized import plainly_rounded, quantized
from recon.reconstruct import reconstruct
from recon.settings import Settings

SIDE = 48
LARGE = ("efficientnet_b0", "regnet_x_400mf", "mnasnet1_0")  # half a minute each


def settled(name: str, images: Tensor) -> nn.Module:
    """A network with random weights whose batch norms know the images: else its output says nothing."""
    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)(num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for _ in range(5):
            model.train()(images)
    return model.eval()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in FAMILIES]
)
def test_it_survives_four_bit_weights_and_eight_bit_activations(name: str) -> None:
    images = torch.rand(24, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    calibration, others = images[:16], images[16:]
    model = settled(name, images)
    before = fingerprint(model)
    network = of_images(model, (3, SIDE, SIDE), name)
    inner = [Precision(4, 8)] * (len(network.table) - 2)
    config = BitConfig(network.table.names, (Precision(8, 8), *inner, Precision(8, 8)))
    result = reconstruct(network, calibration, config, Settings(steps=2, batch=8))
    assert result.layers.config(network.table.names) == config
    assert [layer for report in result.reports for layer in report.bits].count(4) == len(inner)
    errors = []
    with torch.no_grad():
        expected = network.model(others)
        for layers in (plainly_rounded(network, [calibration], config), result.layers):
            errors.append(float((quantized(network, layers).model(others) - expected).norm()))
    # Random weights hardly tell images apart: what is asked for is that nothing breaks, not that much is gained.
    assert errors[1] < 1.25 * errors[0]
    assert errors[1] < 2 * float((expected - expected.mean(0)).norm())
    assert fingerprint(model) == before
