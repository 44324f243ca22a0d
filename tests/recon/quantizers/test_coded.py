"""Grids for entropy-coded weights: against rate-distortion theory, brute force and what files give back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from captured import moments_of

from hwmodel import InputError, Precision
from recon.fit.obq import descend, output_error, place_obq
from recon.fit.start import second_order_rounding, shared_out, shrunk, widen
from recon.quantizers.coded import (
    FARTHEST,
    ZERO,
    Frequencies,
    bias_steps,
    code_bits,
    coded_bytes,
    coded_grid,
    entropy,
    scale_of,
    scale_steps,
    to_bias_grid,
    to_log_grid,
)
from recon.quantizers.weights import Grid, QuantizedWeight, decode, encode, search_grid


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("rate", "share", "fixed"), [(3.0, 0.59, 0.0376), (4.0, 0.48, 0.0116)])
def test_normal_weights_leave_the_error_that_theory_says(rate: float, share: float, fixed: float) -> None:
    weight = normal(32, 4096)
    grid = coded_grid(weight, rate)
    codes = encode(weight, grid)
    error = float((decode(codes, grid) - weight).square().mean())
    assert entropy(codes.to(torch.uint8)) == pytest.approx(rate, abs=0.01)
    assert error == pytest.approx(math.pi * math.e / 6 * 4**-rate, rel=0.03)  # Gish and Pierce, 1968
    assert error / fixed == pytest.approx(share, abs=0.02)  # of the best grids of 8 and 16 levels, see test_weights


@pytest.mark.parametrize("rate", [0.5, 1.5, 3.0, 6.0, 8.0])
def test_no_weight_is_clipped(rate: float) -> None:
    weight = normal(16, 100) * torch.logspace(-3, 3, 16)[:, None]
    weight[3, 7] = 1e3  # far from all others
    weight[5] = 0
    grid = coded_grid(weight, rate)
    exact = torch.round(weight / grid.scale[:, None])
    assert exact.abs().max() <= FARTHEST
    assert torch.equal(encode(weight, grid), exact + ZERO)
    assert entropy(encode(weight, grid).to(torch.uint8)) < rate + 0.1


def test_channels_share_one_distribution() -> None:
    weight = normal(8, 4000) * torch.logspace(-2, 2, 8)[:, None]
    codes = encode(weight, coded_grid(weight, 3.0)).to(torch.uint8)
    assert entropy(codes) == pytest.approx(np.mean([entropy(row) for row in codes]), abs=0.01)


def test_frequencies_are_nearly_what_was_counted() -> None:
    drawn = (normal(20_000) * 2 + ZERO).round().clamp(0, 255).to(torch.uint8)
    codes = drawn.numpy()
    found = Frequencies.of(codes)
    assert found.shares().sum() == pytest.approx(1)
    least = entropy(drawn) * len(codes)
    assert least <= found.bits(codes) < least * 1.001
    assert found.bits(np.array([0], np.uint8)) == math.inf
    gap = np.array([5, 5, 9], np.uint8)
    assert Frequencies.of(gap).bits(gap) == pytest.approx(3 * entropy(torch.from_numpy(gap)), rel=0.02)
    assert Frequencies.of(gap).bits(np.array([7], np.uint8)) == math.inf
    alone = np.full(9, 128, np.uint8)
    assert Frequencies.of(alone).bits(alone) == 0


def test_scales_and_biases_are_stored_as_they_are() -> None:
    scale = torch.logspace(-7, 4, 999)
    snapped = to_log_grid(scale)
    assert (snapped / scale).log2().abs().max() <= 1 / 64 + 1e-5
    steps = scale_steps(snapped)
    assert torch.equal(scale_of(steps.least + steps.above.astype(np.int64)), snapped)
    assert torch.equal(to_log_grid(snapped), snapped)
    bias = normal(500) * torch.logspace(-2, 1, 500)
    kept = to_bias_grid(bias)
    assert (kept - bias).abs().max() <= float(bias.square().mean().sqrt()) / 128
    exponent, multiples = bias_steps(kept)
    assert torch.equal(kept.double(), torch.from_numpy(multiples.least + multiples.above.astype(float)) * 2.0**exponent)
    for alone in (torch.zeros(3), torch.tensor([-1e-9]), torch.empty(0)):
        exponent, multiples = bias_steps(to_bias_grid(alone))
        assert len(multiples.above) == len(alone)
    with pytest.raises(InputError, match="finite"):
        to_bias_grid(torch.tensor([math.nan]))


def test_bytes_are_those_of_the_parts() -> None:
    weight = normal(64, 512)
    grid = coded_grid(weight, 2.5)
    stored = QuantizedWeight(grid, encode(weight, grid).to(torch.uint8))
    taken = coded_bytes(stored, torch.zeros(64))
    assert code_bits(stored) / 8 < taken < code_bits(stored) / 8 + 2 * 64 + 60
    assert code_bits(stored) == pytest.approx(2.5 * weight.numel(), rel=0.01)
    fixed = search_grid(weight, 4)
    assert code_bits(QuantizedWeight(fixed, encode(weight, fixed).to(torch.uint8))) == 4 * weight.numel()


def test_the_ridge_is_where_error_and_bits_are_least() -> None:
    root = normal(24, 24)
    hessian, weight = (root @ root.T + torch.eye(24))[None], normal(40, 24)
    grid = coded_grid(weight, 2.0)
    wanted, ridged = shrunk(weight, grid, hessian)
    ridge = (ridged - hessian)[0]
    assert torch.allclose(ridge, ridge[0, 0] * torch.eye(24))
    q = wanted.clone().requires_grad_()
    (output_error(q - weight, hessian).sum() + ridge[0, 0] * q.square().sum()).backward()
    assert q.grad is not None
    assert q.grad.abs().max() < 1e-3  # nothing real is better; whatever is rounded is as far from it as under `ridged`
    other = wanted + normal(40, 24) / 10
    worse = output_error(other - weight, hessian).sum() + ridge[0, 0] * other.square().sum()
    least = output_error(wanted - weight, hessian).sum() + ridge[0, 0] * wanted.square().sum()
    assert float(worse - least) == pytest.approx(float(output_error(other - wanted, ridged).sum()), rel=1e-3)


@pytest.mark.parametrize("rate", [1.5, 2.5])
def test_rounding_that_knows_the_rate_leaves_less_error_for_its_bits(rate: float) -> None:
    root = normal(64, 64) / 8
    hessian, weight = (root @ root.T + 0.2 * torch.eye(64))[None], normal(512, 64)

    def error(aware: bool, octaves: float) -> tuple[float, float]:
        grid = coded_grid(weight, rate)
        grid = Grid(grid.bits, grid.scale * 2**octaves, grid.zero_point, rate)
        target, under = shrunk(weight, grid, hessian) if aware else (weight, hessian)
        place = place_obq(target, grid, under)
        codes = descend(target, place.round(), grid, under).round()
        bits = entropy(codes.to(torch.uint8))
        return bits, math.log2(float(output_error(decode(codes, grid) - weight, hessian).sum())) / 2

    plain_bits, plain = error(False, 0.0)
    bits, found = error(True, 0.0)
    assert bits < plain_bits
    assert bits + found < plain_bits + plain - 0.005  # error falls by a bit for every bit


def test_steps_are_finer_where_errors_cost_more() -> None:
    weight, importance = normal(64, 32), torch.logspace(-4, 4, 64)
    grid = coded_grid(weight, 3.0)
    found = shared_out(grid, importance, weight)
    octaves = (found.scale / grid.scale).log2()
    assert float(octaves.mean()) == pytest.approx(0, abs=0.02)  # as many bits in all
    slope = np.polyfit(importance.log2().numpy(), octaves.numpy(), 1)[0]
    assert slope == pytest.approx(-0.15 / 2, rel=0.1)


def test_importance_counts_where_it_is_known() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 40)
    metric = torch.diag(torch.logspace(-6, 0, 40))

    def spread(count: int) -> float:
        moments = moments_of(layer, normal(count, 16))
        rate = Precision(8, rate=3.0)
        grids = [second_order_rounding(layer.weight.detach(), rate, moments, False, m)[0] for m in (metric, None)]
        return float((grids[0].scale / grids[1].scale).log2().std())

    assert spread(8 * 40) > 0.3
    assert spread(8 * 40 - 1) < 0.1  # of refitted scales alone


def test_finer_steps_clip_nothing_and_dead_channels_decide_nothing() -> None:
    weight, importance = normal(64, 32), torch.ones(64)
    importance[:6] = 0  # channels that nothing depends on
    for rate in (3.0, 8.0):
        grid = coded_grid(weight, rate)
        found = shared_out(grid, importance, weight)
        assert (weight.abs().amax(1) / found.scale).max() <= FARTHEST + 0.5
        assert (found.scale[6:] / grid.scale[6:]).log2().min() > -0.3
        assert widen(grid, -2.0, weight).scale.min() >= (weight.abs().amax(1) / (FARTHEST + 0.5)).min()
