"""The mean weighted squared error of two tensors, in passes over memory that a core's cache holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recon.compute.arithmetic import parts


def mean_square(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean of weight · (output − target)², in float32; output and target are (N, …), the weight (…).

    One operation after another on whole maps in float32, the loss of a layer with many positions would cost more than
    the layer. The gradient goes to `output` alone.
    """
    error: Tensor = _MeanSquare.apply(output, target, weight)
    return error


class _MeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(output, target, weight)
        total = torch.zeros((), device=output.device)
        for ours, theirs, *weights in parts(output, target, *_for_all(weight)):
            square = (ours.float() - theirs.float()).square_()
            for part in weights:
                square.mul_(part)
            total += square.sum()
        return total / output.numel()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        output, target, weight = ctx.saved_tensors
        factor = 2 * gradient / output.numel()
        result = torch.empty_like(output)
        for slope, ours, theirs, *factors in parts(result, output, target, *_for_all(weight, factor)):
            error = ours.float() - theirs.float()
            for part in factors or (factor,):
                error.mul_(part)
            slope.copy_(error)
        return result, None, None


def _for_all(weight: Tensor | None, factor: Tensor | float = 1.0) -> list[Tensor]:
    """A weight (…), if any, times a factor, as it is for all of N: (1, …)."""
    return [] if weight is None else [(weight * factor)[None]]
