"""The sensitivity cache: what each choice of bits costs in expected KL, alone and together with every other choice.

With g = ∂log p(y|x)/∂z_l at the output of layer l, labels y drawn from the float model (`recon.fisher`), and Δz the
output error of layer l at precision c, one number per sample, s_{l,c} = ⟨g, Δz⟩, is the first-order change of the
log-likelihood. The Fisher information is the Hessian of the KL divergence, so a configuration is expected to cost
½ E[(Σ_l s_{l,c_l})²] nats: all intra- and inter-layer terms from one backward pass and one local convolution per layer
and weight width. Quantized inputs add ⟨∂log p/∂x, Q(x) − x⟩, shared among the layers that read the tensor x. What the
table makes of the scores, `mpsearch.scores` says.

Beside them stands the diagonal Fisher's intra-layer term, ½ E[Σ_i g_i² Δz_i²] (BRECQ, arXiv 2102.05426, eq. 10). It
ignores that a layer's output errors act together, and so judges most layers of a real network 2 to 40 times too low.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from hwmodel import FLOAT_BITS, Precision
from mpsearch.sensitivity.scores import Rounded, RoundedWeight, Scores, widths
from recon.compute.arithmetic import channels_last, fast
from recon.fit.start import second_order_rounding
from recon.graph.layers import apply_weight, keep_outputs
from recon.graph.network import Network
from recon.quantizers.inputs import InputGrid, round_to_grid
from recon.quantizers.insert import input_histograms
from recon.quantizers.weights import QuantizedWeight
from recon.statistics.activity import activations
from recon.statistics.fisher import fisher_probe, output_metrics
from recon.statistics.moments import gather_moments
from recon.transforms.basis import balanced

SENSITIVITY_BATCH = 4
ROUNDING_IMAGES = 128  # the first ones, half of them at most, so that the roundings stay when more images come

Change = tuple[Tensor, Tensor] | InputGrid


def split(images: Tensor) -> tuple[Tensor, Tensor]:
    """The images (N, C, H, W) that decide the roundings, and those that judge them.

    They are not the same: a wide layer's rounding learns the images by heart. At 2 bits the classifier of MobileNetV2
    (1,280 inputs) has 0.16 to 0.27 of its error on the images that decided it.
    """
    first = min(ROUNDING_IMAGES, len(images) // 2)
    return images[:first], images[first:]


def measure(
    network: Network,
    images: Tensor,
    precisions: Sequence[Precision],
    seed: int,
    key: str,
    known: Scores | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    *,
    symmetric: bool = False,
) -> Scores:
    """Scores every layer at every width of `precisions` on images (N ≥ 2, C, H, W), normalised for the network.

    Weights are rounded by `second_order_rounding` in the `balanced` basis, the mean output error taken out by the bias:
    closer to what finalization leaves than plain rounding, which overrates low bits. The images are `split`. What is
    `known` under the same `key` is kept as far as `images` begin with the same ones: only new widths and new images are
    measured, and the result is the same as if nothing had been known. `on_batch` is called with images done and in all.
    Grids of weights are `symmetric` or not; `key` says so where both are in use.
    """
    network = balanced(network)
    first, images = split(images)
    key = "-".join([key, *_digests(first.flatten()[None])])
    names, digests, terms = network.table.names, _digests(images), widths(*precisions)
    kept = _kept(known, key, digests, terms)
    new = [term for term in terms if kept is None or term not in kept.rounded]
    roundings = {**({} if kept is None else kept.rounded), **_roundings(network, first, new, seed, symmetric)}
    rounded = {term: roundings[term] for term in terms}
    changes = {name: [change(network, name, rounded[term]) for term in terms] for name in names}
    score, square = np.zeros((2, len(images), len(names), len(terms)), np.float32)
    done = 0
    if kept is not None:
        done, at = len(kept.images), [terms.index(term) for term in kept.terms]
        score[:done, :, at], square[:done, :, at] = kept.score, kept.square
    for start in range(0, len(images), SENSITIVITY_BATCH):
        batch = slice(start, start + SENSITIVITY_BATCH)
        at = [index for index, term in enumerate(terms) if start >= done or term in new]
        if at:
            x = channels_last(images[batch].to(network.device))
            missing = {name: [row[index] for index in at] for name, row in changes.items()}
            generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
            score[batch, :, at], square[batch, :, at] = _batch_terms(network, x, missing, generator)
        on_batch(min(batch.stop, len(images)), len(images))
    return Scores(key, names, digests, rounded, score, square)


def _digests(images: Tensor) -> tuple[str, ...]:
    return tuple(hashlib.blake2b(image.cpu().contiguous().numpy().data, digest_size=16).hexdigest() for image in images)


def _kept(known: Scores | None, key: str, digests: tuple[str, ...], terms: Sequence[Precision]) -> Scores | None:
    """What holds of `known` for images with these digests: whole batches, since arithmetic may depend on the batch."""
    if known is None or known.key != key:
        return None
    pairs = zip(known.images, digests, strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    whole = same if same == len(digests) else same - same % SENSITIVITY_BATCH
    return known.part(whole, terms)


def _roundings(
    network: Network, images: Tensor, terms: Sequence[Precision], seed: int, symmetric: bool
) -> dict[Precision, Rounded]:
    """What every layer's weight, or its input, is rounded to by each of `terms`, for what it gets on images (N, …)."""
    layers = {name: network.layer(name) for name in network.table.names}
    rounded: dict[Precision, Rounded] = {}
    weights = [term for term in terms if term.a == FLOAT_BITS]
    inputs = [term for term in terms if term.a != FLOAT_BITS]
    if weights:
        moments = gather_moments(network.joined(), layers, images, activations(network))
        metrics = output_metrics(network, images, seed)
        for term in weights:
            found: dict[str, RoundedWeight] = {}
            for name, layer in layers.items():
                weight = layer.weight.detach()
                grid, place, bias = second_order_rounding(weight, term.w, moments[name], symmetric, metrics.get(name))
                codes = place.round().to(torch.uint8)
                found[name] = RoundedWeight(QuantizedWeight(grid, codes), bias)
            rounded[term] = found
    if inputs:
        seen = input_histograms(network.model, layers, images)
        for term in inputs:
            rounded[term] = {name: seen[name].grid(term.a) for name in layers}
    return rounded


def change(network: Network, name: str, rounded: Rounded) -> Change:
    """The error of a layer's weight (O, …) with the bias (O,) that goes with it, or the grid of its inputs."""
    found = rounded[name]
    if isinstance(found, InputGrid):
        return found
    weight = network.layer(name).weight.detach()
    return found.weight.dequantize().to(weight.device) - weight, found.bias.to(weight.device)


def _batch_terms(
    network: Network, x: Tensor, changes: Mapping[str, Sequence[Change]], generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """⟨g, Δ⟩ and Σ g² Δ² (n, L, T) of a batch x (n, …), Δ the error of a layer's output, or of its input."""
    of_inputs = any(isinstance(change, InputGrid) for change in next(iter(changes.values())))
    layers = {name: network.layer(name) for name in changes}
    with keep_outputs(layers) as calls, torch.enable_grad(), fast(x.device):
        probe = fisher_probe(network.model(x.requires_grad_(of_inputs)), generator)
    read = {id(inputs): inputs for _, inputs, _ in calls} if of_inputs else {}
    gradients = torch.autograd.grad(probe, [z for *_, z in calls] + list(read.values()))
    input_gradients = dict(zip(read, gradients[len(calls) :], strict=True))
    readers = Counter(id(inputs) for _, inputs, _ in calls)
    index = {name: position for position, name in enumerate(changes)}
    score = torch.zeros(len(x), len(changes), len(next(iter(changes.values()))), device=x.device)
    square = torch.zeros_like(score)
    with torch.no_grad(), fast(x.device):
        for (name, inputs, _), gradient in zip(calls, gradients, strict=False):
            for term, change in enumerate(changes[name]):
                if isinstance(change, InputGrid):
                    exact = inputs.float()
                    share = input_gradients[id(inputs)].float() / readers[id(inputs)]
                    product = share * (round_to_grid(exact, change) - exact)
                else:
                    product = gradient.float() * apply_weight(layers[name], inputs, *change).float()
                score[:, index[name], term] += product.flatten(1).sum(1)
                square[:, index[name], term] += product.flatten(1).square().sum(1)
    return score.cpu().numpy(), square.cpu().numpy()
