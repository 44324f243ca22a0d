"""What rounding a layer does to the log-likelihood of single samples, to first order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.sensitivity.forward import Change
from recon.compute.arithmetic import fast
from recon.graph.layers import Convolution, Layer, Linear, keep_outputs
from recon.graph.network import Network
from recon.likelihood.likelihood import Likelihood
from recon.quantizers.inputs import InputGrid, round_to_grid

LARGE = 4  # copies of a sample's outputs that its gradient by the weight may take as much room as

Terms = NDArray[np.float32]
Error = tuple[Tensor, Tensor]  # of a weight (O, …), and the bias (O,) that goes with it


def batch_terms(
    network: Network,
    leaves: Sequence[Tensor],
    likelihood: Likelihood,
    changes: Mapping[str, Sequence[Change | None]],
    generator: torch.Generator,
    squares: bool,
) -> tuple[Terms, Terms]:
    """⟨g, Δ⟩ and, if `squares`, Σ g² Δ² (n, L, T), else NaN, for the T `changes` of L layers and samples, whose tensors
    are (n, …), with Δ the error of a layer's output, or of its input.

    ⟨g, Δ⟩ is also the error of the weight times the sample's own gradient by it: where maps are large, one gradient
    that serves all widths takes less than the errors of the outputs, and so do the squares of a few samples.
    """
    of_inputs = any(isinstance(change, InputGrid) for row in changes.values() for change in row)
    layers = {name: network.layer(name) for name in changes}
    leaves = [x.requires_grad_(of_inputs) if x.is_floating_point() else x for x in leaves]
    with keep_outputs(layers) as calls, torch.enable_grad(), fast(network.device):
        probe = likelihood.probe(network.outputs_of(*leaves), generator)
    read = {id(inputs): inputs for _, inputs, _ in calls if inputs.requires_grad} if of_inputs else {}
    tensors = [z for *_, z in calls] + list(read.values())
    gradients = [
        torch.zeros_like(z) if gradient is None else gradient
        for z, gradient in zip(tensors, torch.autograd.grad(probe, tensors, allow_unused=True), strict=True)
    ]
    of_read = dict(zip(read, gradients[len(calls) :], strict=True))
    readers = Counter(id(inputs) for _, inputs, _ in calls)
    index = {name: position for position, name in enumerate(changes)}
    axes, count = network.sample_axes(), len(leaves[0])
    score = torch.zeros(count, len(changes), len(next(iter(changes.values()))), device=network.device)
    square = torch.zeros_like(score) if squares else torch.full_like(score, math.nan)

    def add(own: int, at: int, sums: tuple[Tensor, Tensor], *, counts: bool = True) -> None:
        score[:, own, at] += sums[0] if counts else 0
        square[:, own, at] += sums[1]

    for (name, inputs, _), gradient in zip(calls, gradients, strict=False):
        layer, axis, own = layers[name], axes[name], index[name]
        errors = {at: change for at, change in enumerate(changes[name]) if isinstance(change, tuple)}
        by_weight = bool(errors) and _maps_are_large(layer, gradient, axis, count)
        if by_weight and axis is not None:
            score[:, own, [*errors]] += score_by_weight(layer, [*errors.values()], inputs, gradient, axis, count)
        if squares or not by_weight:
            of_outputs = score_by_outputs(layer, [*errors.values()], inputs, gradient, axis, count)
            for at, sums in zip(errors, of_outputs, strict=True):
                add(own, at, sums, counts=not by_weight)
        if id(inputs) in read:
            exact, share = inputs.detach().float(), of_read[id(inputs)].float() / readers[id(inputs)]
            for at, grid in enumerate(changes[name]):
                if isinstance(grid, InputGrid):
                    add(own, at, sums_by_sample((round_to_grid(exact, grid) - exact).mul_(share), axis, count))
    return score.cpu().numpy(), square.cpu().numpy()


def _maps_are_large(layer: Layer, z: Tensor, axis: int | None, count: int) -> bool:
    """A sample's gradient by the weight is no larger than a few of its outputs z, and can be had sample by sample."""
    if axis is None or z.dim() == 1 or axis == layer.channel_axis % z.dim() or z.shape[axis] % count:
        return False
    return LARGE * z.numel() // count >= layer.weight.numel()


@torch.no_grad()
def score_by_outputs(
    layer: Layer, errors: Sequence[Error], inputs: Tensor, gradient: Tensor, axis: int | None, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """⟨g, Δ⟩ and Σ g² Δ² (n,) at every width, from the error of the outputs there."""
    for weight, bias in errors:
        with fast(inputs.device):
            moved = layer.apply_weight(inputs, weight, bias)
        yield sums_by_sample(moved.float().mul_(gradient.float()), axis, count)


def score_by_weight(
    layer: Layer, errors: Sequence[Error], inputs: Tensor, gradient: Tensor, axis: int, count: int
) -> Tensor:
    """⟨g, Δ⟩ (n, S) of n samples, which `axis` of inputs and outputs counts, or windows of them one after another."""
    gradient = gradient.float() if layer.exact else gradient
    inputs = inputs.detach().to(gradient) if inputs.is_floating_point() else inputs
    by_weight, by_bias = weight_gradients(layer, inputs, gradient, axis, count).float(), None
    if layer.bias.numel():
        by_bias = gradient.movedim((axis, layer.channel_axis), (0, -1)).reshape(count, -1, len(layer.bias))
        by_bias = by_bias.sum(1, dtype=torch.float32)
    # Width by width: the last digits of a product may depend on how many columns there are.
    found = [by_weight @ weight.flatten() for weight, _ in errors]
    if by_bias is not None:
        found = [score + by_bias @ bias for score, (_, bias) in zip(found, errors, strict=True)]
    return torch.stack(found, 1)


@torch.no_grad()
def weight_gradients(layer: Layer, x: Tensor, slope: Tensor, axis: int, count: int) -> Tensor:
    """By sample the gradient (n, O · K) of a layer's weight for inputs x (N, …) and the gradient of the outputs (N, …),
    of one type, whose `axis` counts the n samples, or windows of them one after another."""
    if isinstance(layer, Linear) or (isinstance(layer, Convolution) and layer.pointwise):
        columns = (
            tensor.movedim((axis, layer.channel_axis), (0, -1)).reshape(count, -1, tensor.shape[layer.channel_axis])
            for tensor in (slope, x)
        )
        return torch.bmm(next(columns).mT, next(columns)).flatten(1)
    parts = zip(x.chunk(count, axis), slope.chunk(count, axis), strict=True)
    return torch.stack([layer.weight_gradient(*part).flatten() for part in parts])


def sums_by_sample(product: Tensor, axis: int | None, count: int) -> tuple[Tensor, Tensor]:
    """The sums (n,) over a tensor, and over its square, whose `axis` counts the samples, or windows of them one sample
    after another.

    A layer that reads constants alone (None) gives one tensor for all samples: what they add up to is shared out so
    that its square is right on average, samples being independent. Maps are large, and passes over memory cost more
    than the convolution: nothing is copied where samples come first.
    """
    if axis is None:
        return (product.sum() / math.sqrt(count)).expand(count), (product.square().sum() / count).expand(count)
    if axis or len(product) != count or product.dim() == 1:
        product = product.movedim(axis, 0).reshape(count, -1)
    within = tuple(range(1, product.dim()))
    return product.sum(within), torch.linalg.vector_norm(product, dim=within).square()
