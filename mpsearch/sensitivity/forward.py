"""Sensitivities without gradients: what rounding one layer alone costs, measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.graph.layers import Layer
from recon.graph.network import Network
from recon.likelihood.likelihood import Likelihood
from recon.quantizers.inputs import InputGrid, round_to_grid

Change = tuple[Tensor, Tensor] | InputGrid


@torch.no_grad()
def measured_scores(
    network: Network,
    leaves: Sequence[Tensor],
    likelihood: Likelihood,
    changes: Mapping[str, Sequence[Change | None]],
) -> NDArray[np.float32]:
    """Scores (n, L, T) of samples, whose tensors are (n, …), for which log cosh of a score is the divergence in nats
    that rounding this layer alone in this way leaves.

    Scores of inputs change their sign from one sample to the next, so that what they add to those of weights is, on
    average, a divergence as well.
    """
    truth = network.outputs_of(*leaves)  # in float32: fast arithmetic alone changes signs
    columns = []
    for name, row in changes.items():
        layer = network.layer(name)
        for change in row:
            if change is None:
                columns.append(np.zeros(len(leaves[0])))
                continue
            with _rounded(layer, change):
                nats = likelihood.divergence(truth, network.outputs_of(*leaves)).cpu().numpy().clip(0)
            score = nats + np.log1p(np.sqrt(-np.expm1(-2 * nats)))  # the inverse of log cosh
            if isinstance(change, InputGrid):
                score[1::2] *= -1
            columns.append(score)
    rounded = np.stack(columns, 1).astype(np.float32)
    return rounded.reshape(len(leaves[0]), len(changes), -1)


@contextmanager
def _rounded(layer: Layer, change: Change) -> Iterator[None]:
    """While it is open, the layer computes with another weight and bias, or rounds what it reads."""
    if isinstance(change, InputGrid):
        grid = change
        hook = layer.register_forward_pre_hook(lambda _, args: (round_to_grid(args[0].float(), grid).to(args[0]),))
        try:
            yield
        finally:
            hook.remove()
        return
    weight, bias = layer.weight.data, layer.bias.data
    layer.weight.data, layer.bias.data = weight + change[0], bias + change[1]
    try:
        yield
    finally:
        layer.weight.data, layer.bias.data = weight, bias
