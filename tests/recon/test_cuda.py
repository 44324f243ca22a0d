"""Where there is a GPU: networks compute where they are, and come out the same."""

from __future__ import annotations

import copy

import pytest
import torch
from captured import of_images
from torch import Tensor, nn

from hwmodel import BitConfig, Precision
from recon.graph.network import Network
from recon.quantizers.quantized import quantized
from recon.reconstruct import reconstruct
from recon.settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def networks() -> tuple[Network, Network]:
    """The same network on the CPU and on the GPU."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU()]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return of_images(model, (3, 12, 12), "small"), of_images(copy.deepcopy(model).cuda(), (3, 12, 12), "small")


def error(net: Network, x: Tensor, bits: str, settings: Settings) -> float:
    """What is left of the logits' power after `bits`."""
    config = BitConfig.uniform(net.table.names, Precision.parse(bits))
    made = reconstruct(net, x, config, settings).layers
    x = x.to(net.device)
    with torch.no_grad():
        truth = net.model(x)
        return float((quantized(net, made).model(x) - truth).square().sum() / truth.square().sum())


@pytest.mark.parametrize("bits", ["W3A32", "W4A4"])
@pytest.mark.parametrize("memory_bytes", [0, 2**30])
def test_a_gpu_comes_as_near_to_float_as_a_cpu(bits: str, memory_bytes: int) -> None:
    x = torch.randn(128, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    on_cpu, on_gpu = (error(net, x, bits, Settings(memory_bytes=memory_bytes)) for net in networks())
    assert on_cpu < 1e-3
    assert on_gpu < 1.5 * on_cpu


def test_a_network_on_the_cpu_stays_there() -> None:
    net, _ = networks()
    x = torch.randn(16, 3, 12, 12)
    made = reconstruct(net, x, BitConfig.uniform(net.table.names, Precision(3)), Settings(steps=2)).layers
    assert {weight.codes.device.type for weight in made.weights.values()} == {"cpu"}
