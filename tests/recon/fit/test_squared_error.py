"""The error of a unit's outputs, worked on slice by slice, against torch's own operators."""

from __future__ import annotations

import pytest
import torch

from recon.compute.arithmetic import PART, channels_last, parts
from recon.fit.squared_error import mean_square


@pytest.mark.parametrize("shape", [(5, 40), (9, 24, 28, 28), (2, 96, 40, 40), (1, 3, 2, 2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    target = channels_last(torch.randn(shape, generator=generator).bfloat16())
    weight = torch.rand(shape[1:], generator=generator) if weighted else None
    outputs = [channels_last(target + 0.1).detach().requires_grad_() for _ in range(2)]
    square = (outputs[0].float() - target.float()).square()
    plain = (square if weight is None else square * weight).mean()
    error = mean_square(outputs[1], target, weight)
    for loss in (plain, error):
        (loss / 3).backward()
    torch.testing.assert_close(error, plain, rtol=1e-6, atol=0)
    assert error.dtype == torch.float32
    gradient, own = (output.grad for output in outputs)
    assert own is not None
    assert own.dtype == torch.bfloat16
    assert torch.equal(own, gradient)


def test_parts_cover_everything_once() -> None:
    many, few = torch.arange(3 * PART).view(-1, 64), torch.arange(3)[:, None].expand(3, 2 * PART)
    slices = list(parts(many, many + 1))
    assert len(slices) == 3
    assert all(torch.equal(one + 1, other) for one, other in slices)
    assert torch.equal(torch.cat([one for one, _ in slices]), many)
    assert [len(part) for (part,) in parts(few)] == [1, 1, 1]
    assert not list(parts(many[:0]))
    assert len(list(parts(few.to("meta")))) == 1  # there is no cache to fit into elsewhere


@pytest.mark.parametrize("samples", [1, 3])
def test_parts_of_large_maps_are_rows(samples: int) -> None:
    maps, weight = torch.randn(samples, 8, 130, 200), torch.randn(1, 8, 130, 200)
    result = torch.empty_like(maps, memory_format=torch.channels_last)
    for out, part, of_all in parts(result, maps, weight):
        assert part.numel() <= PART
        out.copy_(part * of_all)
    assert torch.equal(result, maps * weight)
