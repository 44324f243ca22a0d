"""Wide layers by blocks of their inputs, against one covariance of all of them."""

from __future__ import annotations

import pytest
import torch
from captured import moments_of, of_images
from torch import nn

from hwmodel import BitConfig, Precision
from recon.fit.start import second_order_rounding
from recon.quantizers import weights
from recon.quantizers.nearest import nearest
from recon.quantizers.quantized import QuantizedLayers, plainly_rounded, quantized
from recon.quantizers.weights import decode, search_grid
from recon.reconstruct import reconstruct
from recon.settings import Settings
from recon.statistics import moments
from recon.statistics.moments import BLOCK, WIDE, blocks_of


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("length", "count"), [(1, 1), (4608, 1), (9216, 6), (25_088, 14), (5003, 1), (6144, 3)])
def test_blocks_are_equal_and_as_few_as_can_be(length: int, count: int) -> None:
    assert blocks_of(length) == count
    assert length % count == 0
    assert length <= WIDE or count == 1 or length // count <= BLOCK


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four blocks of 48 inputs for what is one matrix of 192 otherwise."""
    monkeypatch.setattr(moments, "WIDE", 100)
    monkeypatch.setattr(moments, "BLOCK", 48)


def inputs(count: int, seed: int) -> torch.Tensor:
    return normal(count, 40, seed=seed) @ (normal(40, 192) / 6) + 0.3 * normal(count, 192, seed=seed + 1)


def test_blocks_and_patches_make_the_covariance_of_all(narrow: None) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(192, 24), inputs(96, 1)
    found = moments_of(layer, x)
    blocks, patches = found.hessian(), found.patches()
    assert found.wide
    assert blocks.shape == (4, 48, 48)
    assert patches.shape == (4, 48, 96)
    assert torch.allclose(found.mean(), x.mean(0)[None], atol=1e-5)
    whole = patches.flatten(0, 1) @ patches.flatten(0, 1).T
    for at in range(4):
        part = slice(48 * at, 48 * at + 48)
        ridge = (blocks[at] - whole[part, part]).diagonal()
        assert torch.allclose(blocks[at], whole[part, part] + torch.diag(ridge), atol=1e-4)
        whole[part, part] = blocks[at]
    assert torch.linalg.eigvalsh(whole).min() > 0
    pulls = normal(3, 1, 24, 192)
    assert torch.allclose(found.solve(pulls) @ whole, pulls, atol=2e-3)


@pytest.mark.parametrize("precision", [Precision(3), Precision(8, rate=3.0)])
def test_blocks_make_up_for_each_other(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x, fresh = nn.Linear(192, 24), inputs(96, 1), inputs(4000, 3)
    weight = layer.weight.detach()

    def error() -> float:
        grid, place, bias = second_order_rounding(weight, precision, moments_of(layer, x))
        return float(((decode(place.round(), grid) - weight) @ fresh.T + bias[:, None]).square().mean())

    whole = error()
    plain = float(((nearest(weight, precision).dequantize() - weight) @ (fresh - fresh.mean(0)).T).square().mean())
    monkeypatch.setattr(moments, "WIDE", 100)
    monkeypatch.setattr(moments, "BLOCK", 48)
    assert error() < 1.35 * whole < 0.75 * plain


def test_a_grid_is_searched_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, importance = normal(9, 32), normal(9, 32, seed=1).square()
    for what in (None, importance, importance[:1]):
        whole = search_grid(weight, 3, what, halves=True)
        monkeypatch.setattr(weights, "SEARCHED", 64)
        parts = search_grid(weight, 3, what, halves=True)
        monkeypatch.undo()
        assert torch.equal(whole.scale, parts.scale)
        assert torch.equal(whole.zero_point, parts.zero_point)


@pytest.mark.parametrize("precision", [Precision(3), Precision(8, rate=3.0)])
def test_a_network_with_a_wide_layer_is_finished(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(192, 192), nn.ReLU(), nn.Linear(192, 10))
    net, x, fresh = of_images(model, (192,)), inputs(128, 1), inputs(2000, 3)
    config = BitConfig.uniform(net.table.names, precision)

    def divergence(layers: QuantizedLayers) -> float:
        with torch.no_grad():
            p, q = (made.model(fresh).log_softmax(1) for made in (net, quantized(net, layers)))
        return float((p.exp() * (p - q)).sum(1).mean())

    def finished() -> float:
        return divergence(reconstruct(net, x, config, Settings(steps=10)).layers)

    whole, plain = finished(), divergence(plainly_rounded(net, (x,), config))
    monkeypatch.setattr(moments, "WIDE", 100)
    monkeypatch.setattr(moments, "BLOCK", 48)
    assert finished() < min(1.5 * whole, plain)
