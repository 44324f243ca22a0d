"""The mean weighted squared error of two tensors, in passes over memory that a core's cache holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recon.compute import parts


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
        for ours, theirs in parts(output, target):
            square = (ours.float() - theirs.float()).square_()
            total += (square if weight is None else square.mul_(weight)).sum()
        return total / output.numel()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        output, target, weight = ctx.saved_tensors
        factor = 2 * gradient / output.numel()
        factor = factor if weight is None else weight * factor
        result = torch.empty_like(output)
        for slope, ours, theirs in parts(result, output, target):
            slope.copy_((ours.float() - theirs.float()).mul_(factor))
        return result, None, None
