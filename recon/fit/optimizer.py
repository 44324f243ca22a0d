"""Training what a quantized layer has: codes, scales, biases, and the step sizes of its inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recon.graph.layers import Layer
from recon.quantizers.learned import bias_of, rounding_of


class Annealed:
    """Adam with rates that fall to zero by a cosine."""

    def __init__(self, parameters: Sequence[tuple[Sequence[Tensor], float]]) -> None:
        groups = [(list(tensors), rate) for tensors, rate in parameters if rate and tensors]
        for tensors, _ in groups:
            for tensor in tensors:
                tensor.requires_grad_()
        self.rates = [rate for _, rate in groups]
        self.adam = torch.optim.Adam([{"params": tensors, "lr": rate} for tensors, rate in groups], fused=True)

    def step(self, loss: Tensor, progress: float) -> None:
        """One step down `loss`, at `progress` (0 … 1) of all steps; none where the loss does not depend on anything
        that is trained by a gradient."""
        if not loss.requires_grad:
            return
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * progress))
        self.adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()

    def parameters(self) -> list[Tensor]:
        """Everything that is trained, in one order."""
        return [parameter for group in self.adam.param_groups for parameter in group["params"]]


def weight_parameters(
    layers: Sequence[Layer], code_rate: float, other_rate: float
) -> list[tuple[Sequence[Tensor], float]]:
    """The codes and log-scales that learn, the biases of layers with roundings, and their rates: per step, in their
    units."""
    roundings = [rounding_of(layer) for layer in layers]
    scales = [rounding.log_scale for rounding in roundings if rounding.log_scale.requires_grad]
    biases = [bias_of(layer) for layer in layers]
    codes = [rounding.code for rounding in roundings if rounding.code.requires_grad]
    return [(codes, code_rate), (scales + biases, other_rate)]
