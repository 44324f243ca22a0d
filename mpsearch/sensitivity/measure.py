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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, takewhile

import numpy as np
import torch
from torch import Tensor

from hwmodel import FLOAT_BITS, LayerTable, Precision
from mpsearch.sensitivity.forward import Change, measured_scores
from mpsearch.sensitivity.scores import Rounded, RoundedWeight, Scores, widths
from mpsearch.sensitivity.terms import batch_terms
from recon.compute.arithmetic import picked
from recon.fit.start import second_order_rounding, second_order_roundings
from recon.graph.gradients import without_gradient
from recon.graph.layers import Embedding, Layer
from recon.graph.network import Network
from recon.graph.samples import Samples
from recon.likelihood.likelihood import CLASSIFIER, Likelihood
from recon.quantizers.coded import coded_bytes
from recon.quantizers.inputs import InputGrid
from recon.quantizers.insert import watch_inputs
from recon.quantizers.nearest import nearest
from recon.quantizers.weights import QuantizedWeight
from recon.statistics.fisher import output_metrics
from recon.statistics.moments import InputMoments, gather_moments
from recon.statistics.slopes import activations
from recon.transforms.basis import balanced

Terms = tuple[np.ndarray, np.ndarray]  # (n, L, T) each
Spread = Callable[["Scored", Sequence["Part"]], Iterator[tuple["Part", Terms]]]
SENSITIVITY_BATCH = 4
SQUARED = 8  # one batch of so many is measured for the diagonal Fisher, which a few images tell
LEARNING = 0.1  # of K / n, by which a rounding of K inputs that n vectors decide loses more than with very many
ROUNDING_SAMPLES = 256  # the first ones, half of them at most, so that the roundings stay when more images come


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
    are measured, and the result is the same as if nothing had been known. What is learned from few samples is scored as
    twice as many would leave it (`learning_curve`). `on_batch` is called with samples done and in all. Weights of
    `symmetric` bits have grids with the zero-point in the middle; `key` says which, where several are in use. `spread`
    computes the parts, in any order; here, one after another, without it.
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
    of_weights = [term.a == FLOAT_BITS for term in terms]
    left = np.where(of_weights, learning_curve(network.table, len(first))[:, None], 1.0)
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
        score[rows, :, at], square[rows, :, at] = scores[0] * np.sqrt(left[:, at]), scores[1] * left[:, at]
        behind += scored.size(part)
        on_batch(behind, count)
    return Scores(key, names, digests, rounded, score, square, alone)


def learning_curve(table: LayerTable, count: int) -> np.ndarray:
    """By layer (L,), what twice as many samples leave of the loss of roundings that `count` samples have decided:
    finalization has all samples, and those that judge are no fewer than those that decide.

    Decided by n vectors of K inputs, a rounding loses 1 + `LEARNING` · K / n times what it loses with very many: the
    classifiers of MobileNetV2 and EfficientNet-Lite0, K 1,280, lose with 512 images 0.74 to 0.88 of what they lose with
    256, and with 256 0.70 to 0.90 of what they lose with 128; by this, 0.83 and 0.75. Where a layer has a map of
    positions, nothing is left to learn.
    """
    lengths = np.array([layer.kind != "embedding" and layer.weights_per_channel for layer in table], np.float64)
    positions = np.array([layer.uses * math.prod(layer.out_size) for layer in table], np.float64)
    missing = LEARNING * lengths / (count * positions)
    return (1 + missing / 2) / (1 + missing)


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
    def _changes(self) -> dict[str, list[Change | None]]:
        names = self.network.table.names
        return {name: [change(self.network, name, row) for row in self.rounded.values()] for name in names}

    def of(self, part: Part) -> Terms:
        """⟨g, Δ⟩ and Σ g² Δ² (n, L, T) of one part: nothing in it depends on any other."""
        names, terms = self.network.table.names, tuple(self.rounded)
        at = [terms.index(term) for term in part.terms]
        score, square = np.zeros((2, self.size(part), len(names), len(at)), np.float32)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + part.start)
        x = picked(self.leaves, slice(part.start, part.start + SENSITIVITY_BATCH), self.network.device)
        missing = {name: [row[index] for index in at] for name, row in self._changes.items()}
        alone = {name: missing.pop(name) for name in self.alone}
        if missing:
            of = [names.index(name) for name in missing]
            squares = part.start // SENSITIVITY_BATCH % SQUARED == 0
            score[:, of], square[:, of] = batch_terms(self.network, x, self.likelihood, missing, generator, squares)
        if alone:
            of = [names.index(name) for name in alone]
            score[:, of] = measured_scores(self.network, x, self.likelihood, alone)
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
        of_layers = {
            name: _rounded(layer, weights, moments.get(name), symmetric, metrics.get(name))
            for name, layer in layers.items()
        }
        rounded |= {term: {name: found[term] for name, found in of_layers.items()} for term in weights}
    if inputs:
        reading = {name: layer for name, layer in layers.items() if not isinstance(layer, Embedding)}
        seen = watch_inputs(network.module, reading, leaves)
        for term in inputs:
            rounded[term] = {name: seen[name].grid(term.a) for name in reading}
    return rounded


def _rounded(
    layer: Layer,
    terms: Sequence[Precision],
    moments: InputMoments | None,
    symmetric: Collection[int],
    metric: Tensor | None,
) -> dict[Precision, RoundedWeight]:
    """A layer's quantized weight at every width: the nearest one of an embedding, whose inputs have no moments."""
    weight, bias, found = layer.weight.detach(), layer.bias.detach(), {}
    if moments is None:
        return {term: _sized(term, nearest(weight, term, term.w in symmetric), bias, bias) for term in terms}
    at_once = [term for term in terms if not (term.rate or moments.wide)]  # a wide layer's places take gigabytes
    singly = [term for term in terms if term not in at_once]
    places = chain(
        second_order_roundings(weight, at_once, moments, symmetric, metric) if at_once else (),
        (second_order_rounding(weight, term, moments, term.w in symmetric, metric) for term in singly),
    )
    for term, (grid, place, added) in zip((*at_once, *singly), places, strict=True):
        found[term] = _sized(term, QuantizedWeight(grid, place.round().to(torch.uint8)), added, bias + added)
    return found


def _sized(term: Precision, weight: QuantizedWeight, added: Tensor, bias: Tensor) -> RoundedWeight:
    return RoundedWeight(weight, added, coded_bytes(weight, bias) if term.rate else 0.0)


def change(network: Network, name: str, rounded: Rounded) -> Change | None:
    """The error of a layer's weight (O, …) with the bias (O,) that goes with it, or the grid of its inputs; None where
    they are not quantized."""
    found = rounded.get(name)
    if found is None or isinstance(found, InputGrid):
        return found
    weight = network.layer(name).weight.detach()
    return found.weight.dequantize().to(weight.device) - weight, found.bias.to(weight.device)
