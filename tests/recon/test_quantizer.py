"""The weight quantizer against torch's own operator, brute force and closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch

from hwmodel import InputError
from recon.fit import obq
from recon.fit.obq import descend, descend_together, place_obq, refit_scale
from recon.fit.start import second_order_rounding
from recon.quantizers.weights import Grid, decode, encode, nearest, search_grid, to_half_grid
from recon.statistics.moments import PER_IMAGE, by_group, gather_moments, input_patches, mean_output, some_positions

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
    stored = nearest(weight, 2)
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
    stored = nearest(weight, bits, symmetric=True)
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
    assert (found >= (nearest(weight, bits).dequantize() - weight).square().sum(1) * 0.95).all()


def test_scales_beyond_half_precision_are_refused() -> None:
    with pytest.raises(InputError, match="half-precision"):
        search_grid(torch.tensor([[-1e6, 1e6]]), 2)


def test_second_order_rounding_lowers_the_output_error() -> None:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(24, 24, generator=generator)
    x = torch.randn(4000, 24, generator=generator) @ mix + 1  # correlated inputs: what it is for
    layer = torch.nn.Linear(24, 16)
    weight = weights(16, 24, seed=2)
    moments = gather_moments(layer, {"layer": layer}, x)["layer"]
    for bits in (2, 3, 4):
        grid = search_grid(weight, bits)
        plain = ((decode(encode(weight, grid), grid) - weight) @ x.T).square().mean()
        grid, place, bias = second_order_rounding(weight, bits, moments)
        moved = (decode(place.round(), grid) - weight) @ x.T + bias[:, None]
        assert moved.square().mean() < 0.6 * plain
        assert moved.mean(1).abs().max() < 1e-3


def test_second_order_rounding_is_near_the_best_there_is() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(500, 5, generator=generator) @ torch.randn(5, 5, generator=generator)
    moment = (x.T @ x / len(x))[None]
    ratios: dict[str, list[float]] = {"placed": [], "descended": []}
    for seed in range(20):
        weight = weights(1, 5, seed=seed)
        grid = search_grid(weight, 2)
        everything = torch.tensor(list(itertools.product(range(4), repeat=5)), dtype=torch.float32)
        errors = (decode(everything, Grid(2, grid.scale.expand(1024), grid.zero_point.expand(1024))) - weight) @ x.T
        best = errors.square().mean(1).min()
        placed = place_obq(weight, grid, moment).round()
        for name, codes in (("placed", placed), ("descended", descend(weight, placed, grid, moment).round())):
            found = ((decode(codes, grid) - weight) @ x.T).square().mean()
            assert found >= best * (1 - 1e-4)
            ratios[name].append(float(found / best))
        assert ratios["descended"][-1] <= ratios["placed"][-1] * (1 + 1e-4)
    assert sorted(ratios["placed"])[10] < 1.5  # the median of 20
    assert sorted(ratios["descended"])[10] < 1.1


def test_the_grid_is_near_the_best_there_is() -> None:
    generator = torch.Generator().manual_seed(3)
    layer = torch.nn.Linear(5, 1)
    x = torch.randn(500, 5, generator=generator) @ torch.randn(5, 5, generator=generator)
    moments = gather_moments(layer, {"layer": layer}, x)["layer"]
    hessian = moments.hessian()[0]
    everything = torch.tensor(list(itertools.product(range(4), repeat=5)), dtype=torch.float32)
    whole = torch.cat([everything - zero / 2 for zero in range(7)])
    reach = whole @ hessian
    power = (reach * whole).sum(1).clamp_min(1e-30)
    ratios = []
    for seed in range(20):
        weight = weights(1, 5, seed=seed)
        best = (weight @ hessian @ weight.T - (reach @ weight[0]).square() / power).min()  # every one at its best scale
        grid, place, _ = second_order_rounding(weight, 2, moments)
        error = decode(place.round(), grid) - weight
        ratios.append(float(error @ hessian @ error.T / best))
    assert min(ratios) >= 1 - 1e-3
    assert sorted(ratios)[15] < 1.05  # three of four; the grid of least squares alone leaves 1.4


def test_descended_codes_are_best_one_by_one_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 900, 12, generator=generator) @ torch.randn(2, 12, 12, generator=generator)
    hessian = x.transpose(1, 2) @ x / 900
    weight = weights(6, 12)  # two groups of three
    grid = search_grid(weight, 2)
    monkeypatch.setattr(obq, "SWEEPS", 20)
    codes = descend(weight, encode(weight, grid), grid, hessian).round()

    def errors(codes: torch.Tensor) -> torch.Tensor:
        error = (decode(codes, grid) - weight).view(2, 3, 12)
        return (x @ error.transpose(1, 2)).square().mean(1).flatten()

    for k, step in itertools.product(range(12), (-1, 1)):
        other = codes.clone()
        other[:, k] = (other[:, k] + step).clamp(0, grid.levels)
        assert (errors(other) >= errors(codes) * (1 - 1e-4)).all()
    monkeypatch.setattr(obq, "BLOCK", 5)
    assert torch.equal(descend(weight, encode(weight, grid), grid, hessian).round(), codes)


def test_channels_that_act_together_are_rounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obq, "TOGETHER_DAMPING", 0.0)
    grids = torch.tensor(list(itertools.product(range(4), repeat=6))).float().view(-1, 2, 3)
    together, alone = [], []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        mix = torch.randn(3, 3, generator=generator)
        hessian = (mix @ mix.T + 0.1 * torch.eye(3))[None]
        pull = torch.randn(2, 2, generator=generator)
        metric = pull @ pull.T + 0.1 * torch.eye(2)
        weight = weights(2, 3, seed=seed)
        grid = search_grid(weight, 2)

        def loss(codes: torch.Tensor, grid: Grid, weight=weight, hessian=hessian, metric=metric) -> torch.Tensor:  # type: ignore[no-untyped-def]
            error = decode(codes, grid) - weight
            return torch.einsum("pq,...pk,kl,...ql->...", metric, error, hessian[0], error)

        best = min(float(loss(codes, grid)) for codes in grids)
        codes = descend(weight, encode(weight, grid), grid, hessian).round()
        refitted = refit_scale(weight, codes, grid, hessian)
        found_grid, places = descend_together(weight, codes, refitted, hessian, metric)
        found, before = float(loss(places.round(), found_grid)), float(loss(codes, refitted))
        assert found <= before * (1 + 1e-3)  # scales are stored in half precision
        together.append(found / best)
        alone.append(before / best)
    assert sorted(together)[10] < 1.1
    assert sum(together) < 0.8 * sum(alone)


def test_channels_that_get_into_each_others_way_move_one_by_one() -> None:
    # All outputs count as one sum: eight channels that each make up for the whole error would overshoot.
    weight, hessian, metric = weights(64, 8), torch.eye(8)[None], torch.ones(64, 64)
    grid = search_grid(weight, 3)
    codes = encode(weight, grid)

    def loss(codes: torch.Tensor, grid: Grid) -> float:
        return float((decode(codes, grid) - weight).sum(0).square().sum())

    found, places = descend_together(weight, codes, grid, hessian, metric)
    assert loss(places.round(), found) < 0.2 * loss(codes, grid)


def test_second_order_rounding_without_correlation_is_plain_rounding() -> None:
    weight = weights(6, 10)
    grid = search_grid(weight, 3)
    codes = place_obq(weight, grid, torch.eye(10)[None]).round()
    assert torch.equal(codes, encode(weight, grid))


def test_refitted_scales_are_the_best_for_the_codes() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 800, 6, generator=generator) @ torch.randn(2, 6, 6, generator=generator)
    hessian = x.transpose(1, 2) @ x / 800
    weight = weights(8, 6)  # two groups of four
    grid = search_grid(weight, 2)
    codes = encode(weight, grid)
    refitted = refit_scale(weight, codes, grid, hessian)

    def errors(scale: torch.Tensor) -> torch.Tensor:
        error = (decode(codes, Grid(2, scale, grid.zero_point)) - weight).view(2, 4, 6)
        return (x @ error.transpose(1, 2)).square().mean(1).flatten()

    for factor in (0.98, 1.02):
        assert (errors(refitted.scale) < errors(refitted.scale * factor)).all()
    assert torch.equal(refitted.scale, refitted.scale.half().float())
    dead = Grid(2, torch.ones(1), torch.zeros(1))
    assert refit_scale(torch.ones(1, 6), torch.zeros(1, 6), dead, hessian[:1]).scale == 1


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Conv2d(4, 6, 3, padding=1),
        torch.nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
        torch.nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"),
        torch.nn.Conv2d(4, 6, 1, stride=2),
        torch.nn.Conv2d(4, 6, 5, padding="same"),
        torch.nn.Linear(4, 6),
    ],
    ids=str,
)
def test_patches_times_weights_are_the_layer(layer: torch.nn.Conv2d | torch.nn.Linear) -> None:
    x = weights(3, 4, 9, 9) if isinstance(layer, torch.nn.Conv2d) else weights(7, 4)
    with torch.no_grad():
        expected = layer(x)
        patches = input_patches(layer, x)
        weight = layer.weight.flatten(1)
        product = torch.einsum("gok,gkm->gom", weight.view(len(patches), -1, weight.shape[1]), patches).flatten(0, 1)
        columns = expected.transpose(0, 1).flatten(1) if expected.dim() == 4 else expected.T
        assert torch.allclose(product + layer.bias[:, None], columns, atol=1e-5)
        moments = gather_moments(layer, {"layer": layer}, x)["layer"]
        centred = patches - patches.mean(2, keepdim=True)
        expected = torch.einsum("gkm,glm->gkl", centred, centred) / patches.shape[2]
        shrunk = expected.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(weight.shape[1])
        share = shrinkage(moments.hessian(), expected, shrunk)
        assert (share >= 0.1 / 1.1 - 1e-4).all()
        assert torch.allclose(moments.hessian(), (1 - share) * expected + share * shrunk, atol=1e-4)
        assert torch.allclose(mean_output(weight, moments.mean()), product.mean(1), atol=1e-5)


def shrinkage(found: torch.Tensor, covariance: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How far `found` (G, K, K) has gone from `covariance` to `target`."""
    way = target - covariance
    return ((found - covariance) * way).sum((1, 2), keepdim=True) / way.square().sum((1, 2), keepdim=True)


@pytest.mark.parametrize("images", [64, 16_384])
def test_the_fewer_images_the_more_damping(images: int) -> None:
    """The best shrinkage of a covariance estimate is known for Gaussian inputs (Ledoit and Wolf, 2004)."""
    length = 32
    generator = torch.Generator().manual_seed(6)
    mix = torch.randn(length, length, generator=generator) @ torch.linspace(0.2, 1.5, length).diag()
    layer = torch.nn.Linear(length, 2)
    true = mix.T @ mix
    variance = true.diagonal().mean()
    spread = (true.trace() ** 2 + true.square().sum()) / images
    share = spread / (spread + (true - variance * torch.eye(length)).square().sum())
    x = torch.randn(images, length, generator=generator) @ mix
    expected = max(float(share), 0.1 / 1.1)
    hessian = gather_moments(layer, {"layer": layer}, x)["layer"].hessian()
    covariance = torch.cov(x.T, correction=0)
    found = shrinkage(hessian, covariance[None], covariance.diagonal().mean() * torch.eye(length))
    assert float(found) == pytest.approx(expected, rel=0.3)
    assert (expected > 0.23) == (images == 64)


def test_dead_inputs_leave_a_hessian_that_can_be_inverted() -> None:
    layer = torch.nn.Conv2d(2, 2, 3, groups=2)
    x = torch.cat([torch.zeros(8, 1, 9, 9), torch.full((8, 1, 9, 9), 3.0)], 1)
    hessian = gather_moments(layer, {"layer": layer}, x)["layer"].hessian()
    assert torch.isfinite(torch.linalg.cholesky(hessian)).all()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 2)])
def test_some_patches_are_those_of_their_positions(groups: int, kernel: int, stride: int) -> None:
    layer = torch.nn.Conv2d(4, 8, kernel, stride, padding=kernel // 2, groups=groups)
    x = weights(3, 4, 66, 67).contiguous(memory_format=torch.channels_last)
    z = layer(x).detach()
    positions = some_positions(z, torch.Generator().manual_seed(0))
    assert (positions is None) == (z[0, 0].numel() <= PER_IMAGE)
    positions = torch.arange(len(z) * z[0, 0].numel()) if positions is None else positions
    assert len(positions.unique()) == len(positions) == len(z) * min(PER_IMAGE, z[0, 0].numel())
    assert torch.equal(input_patches(layer, x, positions), input_patches(layer, x)[:, :, positions])
    assert torch.equal(by_group(layer, z, positions), by_group(layer, z)[:, :, positions])
