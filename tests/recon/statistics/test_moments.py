"""Moments of layer inputs: against sums by hand, and what is known of the shrinkage of covariances."""

from __future__ import annotations

import sys

import pytest
import torch
from captured import moments_of, of_images
from torch import nn

from recon.statistics.moments import mean_output


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (4, 9, 9)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (4, 9, 9)),
        (nn.Conv1d(4, 6, 3), (4, 20)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5)),
        (nn.Linear(4, 6), (4,)),
        (nn.Linear(4, 6), (5, 4)),
    ],
    ids=str,
)
@torch.no_grad()
def test_moments_are_those_of_the_patches(
    layer: nn.Module, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["recon.statistics.moments"], "FEWEST", 256)  # all of them
    x = torch.randn(7, *size, generator=torch.Generator().manual_seed(0))
    net = of_images(nn.Sequential(layer), size)
    patches = net.layer("0").patches(x)
    weight = net.layer("0").weight.flatten(1)
    moments = moments_of(layer, x)
    centred = patches - patches.mean(2, keepdim=True)
    expected = torch.einsum("gkm,glm->gkl", centred, centred) / patches.shape[2]
    shrunk = expected.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(weight.shape[1])
    share = shrinkage(moments.hessian(), expected, shrunk)
    assert (share >= 0.1 / 1.1 - 1e-4).all()
    assert torch.allclose(moments.hessian(), (1 - share) * expected + share * shrunk, atol=1e-4)
    product = torch.einsum("gok,gkm->gom", weight.view(len(patches), -1, weight.shape[1]), patches).flatten(0, 1)
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
    hessian = moments_of(layer, x).hessian()
    covariance = torch.cov(x.T, correction=0)
    found = shrinkage(hessian, covariance[None], covariance.diagonal().mean() * torch.eye(length))
    assert float(found) == pytest.approx(expected, rel=0.3)
    assert (expected > 0.23) == (images == 64)


def test_dead_inputs_leave_a_hessian_that_can_be_inverted() -> None:
    layer = torch.nn.Conv2d(2, 2, 3, groups=2)
    x = torch.cat([torch.zeros(8, 1, 9, 9), torch.full((8, 1, 9, 9), 3.0)], 1)
    hessian = moments_of(layer, x).hessian()
    assert torch.isfinite(torch.linalg.cholesky(hessian)).all()
