"""Gradients of single samples by the weight: against autograd, for every kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mpsearch.sensitivity.terms import weight_gradients
from recon.graph.layers import Convolution, Embedding, Layer, Linear, TransposedConvolution


def kinds() -> dict[str, tuple[Layer, Tensor, int]]:
    """A layer, inputs of three samples, and the axis that counts them."""
    torch.manual_seed(0)
    zeros = torch.zeros
    ones = (1, 1)
    return {
        "pointwise": (
            Convolution(torch.randn(6, 4, 1, 1), zeros(6), ones, (0, 0), ones, 1),
            torch.randn(3, 4, 5, 5),
            0,
        ),
        "strided pointwise": (
            Convolution(torch.randn(6, 4, 1, 1), zeros(6), (2, 2), (0, 0), ones, 1),
            torch.randn(3, 4, 5, 5),
            0,
        ),
        "padded pointwise": (
            Convolution(torch.randn(6, 4, 1, 1), zeros(6), ones, (1, 1), ones, 1),
            torch.randn(3, 4, 5, 5),
            0,
        ),
        "3 × 3": (Convolution(torch.randn(6, 4, 3, 3), zeros(6), (2, 2), (1, 1), ones, 1), torch.randn(3, 4, 7, 7), 0),
        "depthwise": (
            Convolution(torch.randn(4, 1, 3, 3), zeros(4), ones, (1, 1), ones, 4),
            torch.randn(3, 4, 7, 7),
            0,
        ),
        "same": (Convolution(torch.randn(4, 2, 3, 3), zeros(4), ones, "same", ones, 2), torch.randn(3, 4, 7, 7), 0),
        "1d": (Convolution(torch.randn(6, 4, 3), zeros(6), (1,), (2,), (2,), 1), torch.randn(3, 4, 9), 0),
        "3d": (
            Convolution(torch.randn(2, 4, 3, 3, 3), zeros(2), (1,) * 3, (1,) * 3, (1,) * 3, 1),
            torch.randn(3, 4, 4, 4, 4),
            0,
        ),
        "transposed": (
            TransposedConvolution(torch.randn(4, 3, 3, 3), zeros(6), (2, 2), (1, 1), (1, 1), ones, 2),
            torch.randn(3, 4, 5, 5),
            0,
        ),
        "linear": (Linear(torch.randn(6, 4), zeros(6)), torch.randn(3, 4), 0),
        "linear of sequences": (Linear(torch.randn(6, 4), zeros(6)), torch.randn(7, 3, 4), 1),
        "linear of windows": (Linear(torch.randn(6, 4), zeros(6)), torch.randn(6, 2, 4), 0),
        "embedding": (Embedding(torch.randn(10, 4)), torch.randint(10, (3, 5)), 0),
    }


@pytest.mark.parametrize("name", kinds())
def test_every_sample_has_its_own_gradient(name: str) -> None:
    layer, x, axis = kinds()[name]
    slope = torch.randn_like(layer(x))
    found = weight_gradients(layer, x, slope, axis, 3)
    for own, part, share in zip(found, x.chunk(3, axis), slope.chunk(3, axis), strict=True):
        weight = layer.weight.detach().clone().requires_grad_()
        (true,) = torch.autograd.grad(layer.apply_weight(part, weight, layer.bias), weight, share)
        torch.testing.assert_close(own.view_as(true), true, rtol=1e-5, atol=1e-5)
