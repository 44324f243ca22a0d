"""The weight quantizer against torch's own operator, brute force and closed forms."""

from __future__ import annotations

import sys

import pytest
import torch

from hwmodel import InputError, Precision
from recon.quantizers.nearest import nearest
from recon.quantizers.weights import Grid, decode, encode, search_grid, to_half_grid

BITS = (2, 3, 4, 5, 6, 7, 8)


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", BITS)
def test_rounding_equals_torch(bits: int) -> None:
    weight = weights(8, 4, 3, 3)
    grid = search_grid(weight, bits)
    ours = decode(encode(weight, grid), grid)
    theirs = torch.fake_quantize_per_channel_affine(weight, grid.scale, grid.zero_point.int(), 0, 0, 2**bits - 1)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_zero_points_in_halves_equal_torch(bits: int) -> None:
    weight = weights(8, 4, 3, 3)
    grid = search_grid(weight, bits, halves=True)
    assert torch.equal(2 * grid.zero_point, (2 * grid.zero_point).round())
    assert not torch.equal(grid.zero_point, grid.zero_point.round())
    theirs = torch.fake_quantize_per_channel_affine(weight, grid.scale, grid.zero_point, 0, 0, 2**bits - 1)
    assert torch.allclose(decode(encode(weight, grid), grid), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("bits", "integer", "half"), [(2, 0.150, 0.119), (3, 0.0408, 0.0376), (4, 0.0119, 0.0116), (5, 0.0036, 0.0036)]
)
def test_normal_weights_lose_as_little_as_they_can(bits: int, integer: float, half: float) -> None:
    """In halves as in table II of Max, "Quantizing for minimum distortion", IRE Trans. Inf. Theory 6, 1960."""
    weight = torch.special.ndtri((torch.arange(20_000) + 0.5) / 20_000)[None]
    for least, halves in ((integer, False), (half, True)):
        grid = search_grid(weight, bits, halves=halves)
        assert float((decode(encode(weight, grid), grid) - weight).square().mean()) == pytest.approx(least, rel=0.03)


@pytest.mark.parametrize("bits", BITS)
def test_the_search_beats_min_max(bits: int) -> None:
    weight = weights(16, 64)
    low, high = weight.amin(1).clamp_max(0), weight.amax(1).clamp_min(0)
    scale = to_half_grid((high - low) / (2**bits - 1))
    plain = Grid(bits, scale, (-low / scale).round())
    for grid in (search_grid(weight, bits), search_grid(weight, bits, torch.ones(64))):
        found = (decode(encode(weight, grid), grid) - weight).square().sum(1)
        assert (found <= (decode(encode(weight, plain), plain) - weight).square().sum(1) * (1 + 1e-6)).all()


def test_the_search_minds_importance() -> None:
    weight, importance = weights(4, 64), torch.zeros(64)
    importance[:8] = 1.0

    def error(grid: Grid) -> torch.Tensor:
        return ((decode(encode(weight, grid), grid) - weight).square() * importance).sum()

    assert error(search_grid(weight, 2, importance)) < error(search_grid(weight, 2))


@pytest.mark.parametrize("value", [0.0, 0.37, -0.37, 1e-9])
def test_a_constant_channel_is_kept(value: float) -> None:
    weight = torch.full((2, 9), value)
    stored = nearest(weight, Precision(2))
    assert torch.allclose(stored.dequantize(), weight, rtol=1e-3, atol=1e-7)


def test_zero_is_on_every_grid_and_scales_are_half_precision() -> None:
    for bits in BITS:
        grid = search_grid(weights(8, 32) + 0.5, bits)
        assert torch.equal(grid.scale, grid.scale.half().float())
        assert torch.equal(grid.zero_point, grid.zero_point.round())
        assert bits < 5 or torch.equal(grid.zero_point, search_grid(weights(8, 32) + 0.5, bits, halves=True).zero_point)
        assert 0 <= grid.zero_point.min() <= grid.zero_point.max() <= grid.levels
        assert decode(encode(torch.zeros(8, 1), grid), grid).abs().max() == 0


@pytest.mark.parametrize("bits", BITS)
def test_symmetric_grids_are_signed_integers_of_torch(bits: int) -> None:
    weight = weights(8, 64) + 0.3
    stored = nearest(weight, Precision(bits), symmetric=True)
    half = 2 ** (bits - 1)
    assert (stored.grid.zero_point == half).all()
    zeros = torch.zeros(8, dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(weight, stored.grid.scale, zeros, 0, -half, half - 1)
    assert torch.equal(stored.dequantize(), theirs)
    found = (theirs - weight).square().sum(1)
    widest = torch.fake_quantize_per_channel_affine(
        weight, to_half_grid(weight.abs().amax(1) / (half - 0.5)), zeros, 0, -half, half - 1
    )
    assert (found <= (widest - weight).square().sum(1) * (1 + 1e-6)).all()
    assert (found >= (nearest(weight, Precision(bits)).dequantize() - weight).square().sum(1) * 0.95).all()


def test_scales_beyond_half_precision_are_refused() -> None:
    with pytest.raises(InputError, match="half-precision"):
        search_grid(torch.tensor([[-1e6, 1e6]]), 2)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_long_channels_are_judged_by_some_of_their_weights(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(4, 20_000, generator=generator)
    importance = torch.rand(4, 20_000, generator=generator) + 0.1

    def loss() -> torch.Tensor:
        grid = search_grid(weight, bits, importance, halves=True)
        return (importance * (decode(encode(weight, grid), grid) - weight).square()).sum()

    some = loss()
    monkeypatch.setattr(sys.modules["recon.quantizers.weights"], "TELLING", 20_000)
    assert loss() <= some < 1.01 * loss()
