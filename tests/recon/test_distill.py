"""Distilled images: what a network's batch norms see of them is what they remember."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from hwmodel import InputError
from recon.distill import _Moments, distill

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def remembering() -> nn.Module:
    """A network whose batch norms have seen dark, smooth images."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, 2, 1), nn.Conv2d(16, 8, 3, padding=1)]
    parts = [(conv, nn.BatchNorm2d(conv.out_channels, momentum=None), nn.ReLU()) for conv in convs]
    model = nn.Sequential(*(module for part in parts for module in part), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        for _ in range(30):
            coarse = 0.7 * torch.randn(32, 3, 4, 4) - 0.6
            model(nn.functional.interpolate(coarse, 16, mode="bilinear"))
    return model.eval()


def mismatch(model: nn.Module, x: Tensor) -> float:
    """The mean squared distance of batch-norm inputs' means from the running ones, in deviations."""
    found: list[Tensor] = []

    def look(norm: nn.BatchNorm2d, args: tuple[Tensor]) -> None:
        deviation = (norm.running_var + norm.eps).sqrt()
        found.append(((args[0].mean((0, 2, 3)) - norm.running_mean) / deviation).square().mean())

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return float(torch.stack(found).mean())


def normalised(x: Tensor) -> Tensor:
    return (x.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_batch_norms_see_what_they_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[distill.__module__], "STEPS", 50)
    model = remembering()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[tuple[int, int]] = []
    x = distill(model, (3, 16, 16), MEAN, STD, 40, 0, lambda *done: seen.append(done))
    assert (x.shape, x.dtype, seen) == ((40, 16, 16, 3), torch.uint8, [(32, 40), (40, 40)])
    noise = torch.randint(0, 256, x.shape, dtype=torch.uint8)
    assert mismatch(model, normalised(x)) < 0.1 * mismatch(model, normalised(noise))
    assert torch.equal(x, distill(model, (3, 16, 16), MEAN, STD, 40, 0))
    assert not torch.equal(x, distill(model, (3, 16, 16), MEAN, STD, 40, 1))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_network_without_batch_norms_is_refused() -> None:
    with pytest.raises(InputError, match="batch norms"):
        distill(nn.Conv2d(3, 4, 3), (3, 8, 8), MEAN, STD, 16, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_and_their_gradient_are_those_of_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (20 + torch.randn(4, 5, 6, 7, generator=generator)).to(dtype)
    near, by_mean, by_variance = 20 + torch.randn(3, 5, generator=generator)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    found = _Moments.apply(ours, near)
    exact = theirs.mean((0, 2, 3)) - near, theirs.var((0, 2, 3), correction=0)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
    weighted = [(one * by_mean).sum() + (other * by_variance).sum() for one, other in (found, exact)]
    slopes = [torch.autograd.grad(sums, of)[0].double() for sums, of in zip(weighted, (ours, theirs), strict=True)]
    torch.testing.assert_close(*slopes, rtol=1e-4 if dtype == torch.float32 else 5e-3, atol=1e-5)
