"""Per-sample, per-layer sensitivity scores: what the sensitivity table is made of, and grown from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hwmodel import FLOAT_BITS, Precision
from mpsearch.sensitivity.table import SensitivityTable
from recon.quantizers.inputs import InputGrid
from recon.quantizers.weights import QuantizedWeight

METRIC = (
    "held-out fisher, steadied by an eighth, balanced basis, 64 to 256 patches of a map, maps behind means, of twice"
)
SMALL = 1e-2  # below it log cosh s is ½ s² to 2e-5 of it, and what float64 leaves of the sum is less exact
TINY = 1e-150  # of squared scores: the square of anything less is 0


@dataclass(frozen=True, slots=True)
class RoundedWeight:
    """A layer's rounded weight, and the bias (O,), to be added, that takes out the mean error of its outputs; where it
    is entropy-coded, the bytes that it takes."""

    weight: QuantizedWeight
    bias: Tensor
    coded_bytes: float = 0.0


Rounded = dict[str, RoundedWeight] | dict[str, InputGrid]


@dataclass(frozen=True, slots=True)
class Scores:
    """First-order changes of the log-likelihood of N images by rounding each of L layers in each of T ways.

    A term is a width of weights (`W4A32`) or of inputs (`W32A8`); `rounded` holds what they are rounded to, by term and
    layer. `score` (N, L, T) is ⟨g, Δ⟩ and `square` (N, L, T) is Σ g² Δ², with g the gradient and Δ the error of the
    layer's output or input, both as twice the samples would leave them; of images that it was not measured on, `square`
    is NaN. `images` are their digests, `key` is of everything else that the numbers depend on. Of the layers `alone`,
    which no gradient reaches, log cosh of the score is the measured divergence, and `square` is 0.
    """

    key: str
    layers: tuple[str, ...]
    images: tuple[str, ...]
    rounded: dict[Precision, Rounded]
    score: NDArray[np.float32]
    square: NDArray[np.float32]
    alone: tuple[str, ...] = ()

    @property
    def terms(self) -> tuple[Precision, ...]:
        """The T terms."""
        return tuple(self.rounded)

    def part(self, count: int, terms: Iterable[Precision]) -> Scores:
        """Of the first `count` images and those of `terms` that are there."""
        there = [term for term in terms if term in self.rounded]
        at = [self.terms.index(term) for term in there]
        rounded = {term: self.rounded[term] for term in there}
        score, square = (array[:count, :, at] for array in (self.score, self.square))
        return replace(self, images=self.images[:count], rounded=rounded, score=score, square=square)

    def table(self, precisions: Sequence[Precision], seed: int, fingerprint: str) -> SensitivityTable:
        """The sensitivity table at C precisions, whose widths are all among the terms; intra-layer terms steadied,
        inter-layer terms shrunk."""
        s = self._bounded(precisions)
        s *= np.sqrt(self._steady(s, precisions))
        half = 0.5 * s.T @ s / len(s)
        inter = np.where(self._unrelated(precisions), 0.0, self.shrinkage(precisions) * half)
        return SensitivityTable(
            self.layers,
            tuple(precisions),
            half.diagonal().reshape(len(self.layers), len(precisions)),
            0.5 * (inter + inter.T),
            0.5 * self._diagonal(precisions),
            samples=len(s),
            seed=seed,
            metric=METRIC,
            fingerprint=fingerprint,
            coded_bytes=self._coded_bytes(precisions),
        )

    def _coded_bytes(self, precisions: Sequence[Precision]) -> NDArray[np.float64]:
        """What the entropy-coded weights of every layer take at every precision, (L, C)."""
        columns = [self.rounded[widths(precision)[0]] for precision in precisions]
        sizes = [[getattr(column.get(name), "coded_bytes", 0.0) for column in columns] for name in self.layers]
        return np.array(sizes, np.float64)

    def shrinkage(self, precisions: Sequence[Precision]) -> float:
        """What is left of the inter-layer terms, 0 to 1: the share of their squares that is not the noise of N images.

        They are means of products of either sign, and a search finds the pairs that only seem to cancel. The least
        squared error of the correlations says how much to believe of them (Schäfer and Strimmer, "A shrinkage approach
        to large-scale covariance matrix estimation", Stat. Appl. Genet. Mol. Biol. 4, 2005, eq. 8).
        """
        s = self._bounded(precisions)
        z = s / np.sqrt(np.square(s).mean(0).clip(1e-300))
        correlation = z.T @ z / len(z)
        variance = (np.square(z).T @ np.square(z) / len(z) - np.square(correlation)) / max(len(z) - 1, 1)
        others = ~self._unrelated(precisions)
        signal = np.square(correlation)[others].sum()
        return float(np.clip(1 - variance[others].sum() / signal, 0, 1)) if signal else 0.0

    def _steady(self, s: NDArray[np.float64], precisions: Sequence[Precision]) -> NDArray[np.float64]:
        """By what to multiply E[s²] of scores s (N, L · C): (L · C,).

        E[s²] of a layer alone is a mean over N images, a few of which decide it; the diagonal Fisher information is a
        mean over all elements of its output as well, hence steady, but blind to errors that act together. How much they
        do is the layer's own more than the width's: the logarithm of their ratio is shrunk to the layer's mean, as far
        as it varies no more than the noise of so many images (empirical Bayes: Efron and Morris, "Stein's estimation
        rule and its competitors", JASA 68, 1973).
        """
        power, diagonal = np.square(s).mean(0), self._diagonal(precisions).ravel()
        known = (power > TINY) & (diagonal > 0)  # a layer whose rounding changes nothing loses nothing
        shape = (len(self.layers), len(precisions))
        ratio = np.log(np.where(known, power, 1.0) / np.where(known, diagonal, 1.0)).reshape(shape)
        noise = np.square(s).var(0) / np.where(known, np.square(power), 1.0) / len(s)
        known, noise = known.reshape(shape), noise.reshape(shape)
        apart = np.where(known, ratio - ratio.sum(1, keepdims=True) / known.sum(1, keepdims=True).clip(1), 0.0)
        spread = max(float((np.square(apart) - noise)[known].mean()), 0.0) if known.any() else 0.0
        excess = apart * noise / (spread + noise).clip(1e-300)
        factor: NDArray[np.float64] = np.exp(-excess).ravel()
        return factor

    def _diagonal(self, precisions: Sequence[Precision]) -> NDArray[np.float64]:
        """E[Σ g² Δ²] (L, C) of the images that it was measured on."""
        measured = self.square[~np.isnan(self.square).any((1, 2))]
        mean: NDArray[np.float64] = self._by_precision(measured, precisions).mean(0)
        return mean

    def _bounded(self, precisions: Sequence[Precision]) -> NDArray[np.float64]:
        """Scores (N, L · C) whose half squares are log cosh s instead of ½ s².

        That is the KL divergence where two labels are equally likely and their log-likelihoods move by ± s: like any
        KL divergence it grows with the square of small changes, but only in proportion to large ones.
        """
        s = self._by_precision(self.score, precisions).reshape(len(self.score), -1)
        size = np.abs(s)
        log_cosh = size + np.log1p(np.exp(-2 * size)) - np.log(2)
        return np.where(size > SMALL, np.sign(s) * np.sqrt(2 * log_cosh.clip(0)), s)

    def _unrelated(self, precisions: Sequence[Precision]) -> NDArray[np.bool_]:
        """Which pairs of choices (L · C, L · C) have no interaction: those of one layer, and of layers alone."""
        alone = np.array([name in self.alone for name in self.layers])
        pairs = np.eye(len(self.layers), dtype=bool) | alone | alone[:, None]
        return np.kron(pairs, np.ones((len(precisions),) * 2)).astype(bool)

    def _by_precision(self, terms: NDArray[np.float32], precisions: Sequence[Precision]) -> NDArray[np.float64]:
        """Terms (N, L, T) as sums (N, L, C) of a precision's weight and input term."""
        sums = [
            sum(terms[..., self.terms.index(term)].astype(np.float64) for term in widths(precision))
            for precision in precisions
        ]
        return np.stack(sums, axis=-1)


def widths(*precisions: Precision) -> tuple[Precision, ...]:
    """The terms of precisions: the widths or rates of weights, then those of inputs that are not float, ascending."""
    weights = {Precision(precision.w, rate=precision.rate) for precision in precisions}
    inputs = {Precision(FLOAT_BITS, precision.a) for precision in precisions} - {Precision(FLOAT_BITS)}
    return (*sorted(weights), *sorted(inputs))
