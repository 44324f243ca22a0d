"""The sensitivity cache: what each choice of bits costs in expected KL, alone and together with every other choice.

With g = ∂log p(y|x)/∂z_l at the output of layer l, labels y drawn from the float model (`recon.fisher`), and Δz the
output error of layer l at precision c, one number per sample, s_{l,c} = ⟨g, Δz⟩, is the first-order change of the
log-likelihood. The Fisher information is the Hessian of the KL divergence, so a configuration is expected to cost
½ E[(Σ_l s_{l,c_l})²] nats: all intra- and inter-layer terms from one backward pass and one local convolution per layer
and weight width. Quantized inputs add ⟨∂log p/∂x, Q(x) − x⟩, shared among the layers that read the tensor x. What the
table makes of the scores, `mpsearch.scores` says.

Layers whose effect no gradient shows (`recon.graph.gradients`) are rounded alone, and the divergence is measured.

Beside them stands the diagonal Fisher's intra-layer term, ½ E[Σ_i g_i² Δz_i²] (BRECQ, arXiv 2102.05426, eq. 10). It
ignores that a layer's output errors act together, and so judges most layers of a real network 2 to 40 times too low.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from hwmodel import FLOAT_BITS, Precision
from mpsearch.sensitivity.forward import Change, measured_scores
from mpsearch.sensitivity.scores import Rounded, RoundedWeight, Scores, widths
from recon.compute.arithmetic import fast, picked
from recon.fit.start import second_order_rounding
from recon.graph.gradients import without_gradient
from recon.graph.layers import Embedding, keep_outputs
from recon.graph.network import Network
from recon.graph.samples import Samples
from recon.likelihood.likelihood import CLASSIFIER, Likelihood
from recon.quantizers.coded import coded_bytes
from recon.quantizers.inputs import InputGrid, round_to_grid
from recon.quantizers.insert import input_histograms
from recon.quantizers.nearest import nearest
from recon.quantizers.weights import QuantizedWeight
from recon.statistics.fisher import output_metrics
from recon.statistics.moments import gather_moments
from recon.statistics.slopes import activations
from recon.transforms.basis import balanced

Terms = tuple[np.ndarray, np.ndarray]  # (n, L, T) each
Spread = Callable[["Scored", Sequence["Part"]], Iterator[tuple["Part", Terms]]]
SENSITIVITY_BATCH = 4
ROUNDING_SAMPLES = 128  # the first ones, half of them at most, so that the roundings stay when more images come


def split(samples: Samples) -> tuple[Samples, Samples]:
    """The samples that decide the roundings, and those that judge them.

    They are not the same: a wide layer's rounding learns the samples by heart. At 2 bits the classifier of MobileNetV2
    (1,280 inputs) has 0.16 to 0.27 of its error on the images that decided it.
    """
    first = min(ROUNDING_SAMPLES, len(samples) // 2)
    return samples[:first], samples[first:]


def measure(
    network: Network,
    samples: Samples,
    precisions: Sequence[Precision],
    seed: int,
    key: str,
    known: Scores | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    *,
    likelihood: Likelihood = CLASSIFIER,
    symmetric: Collection[int] = (),
    spread: Spread | None = None,
) -> Scores:
    """Scores every layer at every width of `precisions` on two or more samples, as the network takes them; `likelihood`
    says what its outputs mean.

    Weights are rounded by `second_order_rounding` in the `balanced` basis, the mean output error taken out by the bias:
    closer to what finalization leaves than plain rounding, which overrates low bits. The samples are `split`. What is
    `known` under the same `key` is kept as far as `samples` begin with the same ones: only new widths and new samples
    are measured, and the result is the same as if nothing had been known. `on_batch` is called with samples done and in
    all. Weights of `symmetric` bits have grids with the zero-point in the middle; `key` says which, where
    several are in use. `spread` computes the parts, in any order; here, one after another, without it.
    """
    network, samples = balanced(network), samples.single()
    first, judging = split(samples)
    key = "-".join([key, *_digests(Samples(tuple(leaf.flatten()[None] for leaf in first.leaves), first.spec))])
    names, digests, terms = network.table.names, _digests(judging), widths(*precisions)
    hidden = without_gradient(network.module)
    alone = tuple(name for name in names if name in hidden)
    kept = _kept(known, key, digests, terms)
    new = [term for term in terms if kept is None or term not in kept.rounded]
    found = _roundings(network, network.leaves(first), new, seed, likelihood, symmetric)
    roundings = {**({} if kept is None else kept.rounded), **found}
    rounded = {term: roundings[term] for term in terms}
    count = len(judging)
    score, square = np.zeros((2, count, len(names), len(terms)), np.float32)
    done = 0
    if kept is not None:
        done, at = len(kept.images), [terms.index(term) for term in kept.terms]
        score[:done, :, at], square[:done, :, at] = kept.score, kept.square
    starts = range(0, count, SENSITIVITY_BATCH)
    missing = {start: tuple(term for term in terms if start >= done or term in new) for start in starts}
    parts = [Part(start, of) for start, of in missing.items() if of]
    scored = Scored(network, network.leaves(judging), likelihood, rounded, alone, seed)
    behind = count - sum(scored.size(part) for part in parts)
    for part, scores in (spread or one_by_one)(scored, parts):
        rows, at = slice(part.start, part.start + scored.size(part)), [terms.index(term) for term in part.terms]
        score[rows, :, at], square[rows, :, at] = scores
        behind += scored.size(part)
        on_batch(behind, count)
    return Scores(key, names, digests, rounded, score, square, alone)


@dataclass(frozen=True, slots=True)
class Part:
    """The samples of one batch, from `start` on, at the widths that are missing."""

    start: int
    terms: tuple[Precision, ...]


@dataclass(frozen=True)
class Scored:
    """What every part is scored with: the balanced network, the judging samples as tensors (N, …), the likelihood, and
    the roundings by term; layers that no gradient reaches are `alone`."""

    network: Network
    leaves: Sequence[Tensor]
    likelihood: Likelihood
    rounded: Mapping[Precision, Rounded]
    alone: tuple[str, ...]
    seed: int

    def size(self, part: Part) -> int:
        """The samples of a part."""
        return min(SENSITIVITY_BATCH, len(self.leaves[0]) - part.start)

    @cached_property
    def _changes(self) -> dict[Precision, dict[str, Change | None]]:
        names = self.network.table.names
        return {term: {name: change(self.network, name, row) for name in names} for term, row in self.rounded.items()}

    def of(self, part: Part) -> Terms:
        """⟨g, Δ⟩ and Σ g² Δ² (n, L, T) of one part: nothing in it depends on any other."""
        names = self.network.table.names
        changes = {name: [self._changes[term][name] for term in part.terms] for name in names}
        score, square = np.zeros((2, self.size(part), len(names), len(part.terms)), np.float32)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + part.start)
        x = picked(self.leaves, slice(part.start, part.start + SENSITIVITY_BATCH), self.network.device)
        by_gradient = [name not in self.alone for name in names]
        if any(by_gradient):
            rows = {name: row for name, row in changes.items() if name not in self.alone}
            score[:, by_gradient], square[:, by_gradient] = _batch_terms(
                self.network, x, self.likelihood, rows, generator
            )
        if self.alone:
            rows = {name: changes[name] for name in names if name in self.alone}
            measured = [name in self.alone for name in names]
            score[:, measured] = measured_scores(self.network, x, self.likelihood, rows)
        return score, square


def one_by_one(scored: Scored, parts: Sequence[Part]) -> Iterator[tuple[Part, Terms]]:
    """Each part with its terms, computed here."""
    for part in parts:
        yield part, scored.of(part)


def _digests(samples: Samples) -> tuple[str, ...]:
    digests = [hashlib.blake2b(digest_size=16) for _ in range(len(samples))]
    for leaf in samples.leaves:
        for digest, value in zip(digests, leaf.cpu(), strict=True):
            digest.update(value.contiguous().numpy().data)
    return tuple(digest.hexdigest() for digest in digests)


def _kept(known: Scores | None, key: str, digests: tuple[str, ...], terms: Sequence[Precision]) -> Scores | None:
    """What holds of `known` for images with these digests: whole batches, since arithmetic may depend on the batch."""
    if known is None or known.key != key:
        return None
    pairs = zip(known.images, digests, strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    whole = same if same == len(digests) else same - same % SENSITIVITY_BATCH
    return known.part(whole, terms)


def _roundings(
    network: Network,
    leaves: Sequence[Tensor],
    terms: Sequence[Precision],
    seed: int,
    likelihood: Likelihood,
    symmetric: Collection[int],
) -> dict[Precision, Rounded]:
    """The quantized weight, or input grid, of every layer at every width, from samples whose tensors are (N, …)."""
    layers = {name: network.layer(name) for name in network.table.names}
    rounded: dict[Precision, Rounded] = {}
    weights = [term for term in terms if term.a == FLOAT_BITS]
    inputs = [term for term in terms if term.a != FLOAT_BITS]
    if weights:
        mapping = {name: layer for name, layer in layers.items() if not isinstance(layer, Embedding)}
        moments = gather_moments(network.module, mapping, leaves, activations(network))
        metrics = output_metrics(network, leaves, likelihood, seed)
        for term in weights:
            found: dict[str, RoundedWeight] = {}
            for name, layer in layers.items():
                weight = layer.weight.detach()
                if name not in mapping:
                    rounding, bias = nearest(weight, term, term.w in symmetric), layer.bias.detach()
                else:
                    what = weight, term, moments[name], term.w in symmetric, metrics.get(name)
                    grid, place, bias = second_order_rounding(*what)
                    rounding = QuantizedWeight(grid, place.round().to(torch.uint8))
                size = coded_bytes(rounding, layer.bias.detach() + bias) if term.rate else 0.0
                found[name] = RoundedWeight(rounding, bias, size)
            rounded[term] = found
    if inputs:
        reading = {name: layer for name, layer in layers.items() if not isinstance(layer, Embedding)}
        seen = input_histograms(network.module, reading, leaves)
        for term in inputs:
            rounded[term] = {name: seen[name].grid(term.a) for name in reading}
    return rounded


def change(network: Network, name: str, rounded: Rounded) -> Change | None:
    """The error of a layer's weight (O, …) with the bias (O,) that goes with it, or the grid of its inputs; None where
    they are not quantized."""
    found = rounded.get(name)
    if found is None or isinstance(found, InputGrid):
        return found
    weight = network.layer(name).weight.detach()
    return found.weight.dequantize().to(weight.device) - weight, found.bias.to(weight.device)


def _batch_terms(
    network: Network,
    leaves: Sequence[Tensor],
    likelihood: Likelihood,
    changes: Mapping[str, Sequence[Change | None]],
    generator: torch.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """⟨g, Δ⟩ and Σ g² Δ² (n, L, T) of samples, whose tensors are (n, …), Δ the error of a layer's output, or of its
    input."""
    of_inputs = any(isinstance(change, InputGrid) for row in changes.values() for change in row)
    layers = {name: network.layer(name) for name in changes}
    leaves = [x.requires_grad_(of_inputs) if x.is_floating_point() else x for x in leaves]
    with keep_outputs(layers) as calls, torch.enable_grad(), fast(network.device):
        probe = likelihood.probe(network.outputs_of(*leaves), generator)
    read = {id(inputs): inputs for _, inputs, _ in calls if inputs.requires_grad} if of_inputs else {}
    wanted = [z for *_, z in calls] + list(read.values())
    gradients = [
        torch.zeros_like(z) if gradient is None else gradient
        for z, gradient in zip(wanted, torch.autograd.grad(probe, wanted, allow_unused=True), strict=True)
    ]
    input_gradients = dict(zip(read, gradients[len(calls) :], strict=True))
    readers = Counter(id(inputs) for _, inputs, _ in calls)
    index = {name: position for position, name in enumerate(changes)}
    axes = network.sample_axes()
    count = len(leaves[0])
    score = torch.zeros(count, len(changes), len(next(iter(changes.values()))), device=network.device)
    square = torch.zeros_like(score)
    with torch.no_grad(), fast(network.device):
        for (name, inputs, _), gradient in zip(calls, gradients, strict=False):
            slope = gradient.float()
            for term, change in enumerate(changes[name]):
                if isinstance(change, InputGrid) and id(inputs) in read:
                    exact = inputs.float()
                    share = input_gradients[id(inputs)].float() / readers[id(inputs)]
                    product = (round_to_grid(exact, change) - exact).mul_(share)
                elif isinstance(change, tuple):
                    product = layers[name].apply_weight(inputs, *change).float().mul_(slope)
                else:
                    continue
                total, power = sums_by_sample(product, axes[name], count)
                score[:, index[name], term] += total
                square[:, index[name], term] += power
    return score.cpu().numpy(), square.cpu().numpy()


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
