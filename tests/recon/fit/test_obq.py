"""Second-order rounding: against brute force and closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch
from captured import moments_of

from hwmodel import Precision
from recon.fit import obq
from recon.fit.obq import (
    descend,
    descend_all,
    descend_together,
    place_all,
    place_obq,
    refit_scale,
)
from recon.fit.start import second_order_rounding
from recon.quantizers.weights import Grid, decode, encode, search_grid


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_second_order_rounding_lowers_the_output_error() -> None:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(24, 24, generator=generator)
    x = torch.randn(4000, 24, generator=generator) @ mix + 1  # correlated inputs: what it is for
    layer = torch.nn.Linear(24, 16)
    weight = weights(16, 24, seed=2)
    moments = moments_of(layer, x)
    for bits in (2, 3, 4):
        grid = search_grid(weight, bits)
        plain = ((decode(encode(weight, grid), grid) - weight) @ x.T).square().mean()
        grid, place, bias = second_order_rounding(weight, Precision(bits), moments)
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
    moments = moments_of(layer, x)
    hessian = moments.hessian()[0]
    everything = torch.tensor(list(itertools.product(range(4), repeat=5)), dtype=torch.float32)
    whole = torch.cat([everything - zero / 2 for zero in range(7)])
    reach = whole @ hessian
    power = (reach * whole).sum(1).clamp_min(1e-30)
    ratios = []
    for seed in range(20):
        weight = weights(1, 5, seed=seed)
        best = (weight @ hessian @ weight.T - (reach @ weight[0]).square() / power).min()  # every one at its best scale
        grid, place, _ = second_order_rounding(weight, Precision(2), moments)
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
        ((found_grid, places),) = descend_together(weight, [codes], [refitted], hessian, metric)
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

    ((found, places),) = descend_together(weight, [codes], [grid], hessian, metric)
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


def test_several_grids_at_once_give_the_same_bits_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(5)
    for channels, length, groups in ((6, 40, 1), (8, 9, 8), (12, 18, 3)):
        x = torch.randn(groups, 900, length, generator=generator) @ torch.randn(
            groups, length, length, generator=generator
        )
        hessian = x.mT @ x / 900
        pull = torch.randn(channels, channels, generator=generator)
        weight, metric = weights(channels, length), pull @ pull.T
        grids = [search_grid(weight, bits) for bits in (2, 3, 8)]
        several = [weight] * len(grids)
        placed = place_all(several, grids, hessian)
        codes = [place.round() for place in placed]
        descended = descend_all(several, codes, grids, hessian)
        for at, grid in enumerate(grids):
            assert torch.equal(placed[at], place_obq(weight, grid, hessian))
            assert torch.equal(descended[at], descend(weight, codes[at], grid, hessian))
        if groups == 1:
            for at, (grid, place) in enumerate(descend_together(weight, codes, grids, hessian, metric)):
                ((alone, there),) = descend_together(weight, [codes[at]], [grids[at]], hessian, metric)
                assert torch.equal(grid.scale, alone.scale)
                assert torch.equal(place, there)
