"""What single images say about the rounding of single layers: what the sensitivity table is made of, and grown from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hwmodel import FLOAT_BITS, Precision
from mpsearch.sensitivity_table import SensitivityTable
from recon.input_quantizer import InputGrid
from recon.quantizer import QuantizedWeight

METRIC = "fisher"
# Inter-layer terms are means of products with either sign, noisy with a few hundred samples, and a search finds the
# pairs that seem to cancel: they are shrunk. A quarter of them ranked the measured configurations of
# benchmarks/results/bench_fidelity.json (two networks, six budgets) better than a half on the whole, and than none.
SHRINKAGE = 0.25


@dataclass(frozen=True, slots=True)
class RoundedWeight:
    """A layer's rounded weight, and the bias (O,), to be added, that takes out the mean error of its outputs."""

    weight: QuantizedWeight
    bias: Tensor


Rounded = dict[str, RoundedWeight] | dict[str, InputGrid]


@dataclass(frozen=True, slots=True)
class Scores:
    """First-order changes of the log-likelihood of N images by rounding each of L layers in each of T ways.

    A term is a width of weights (`W4A32`) or of inputs (`W32A8`); `rounded` holds what they are rounded to, by term and
    layer. `score` (N, L, T) is ⟨g, Δ⟩ and `square` (N, L, T) is Σ g² Δ², with g the gradient and Δ the error of the
    layer's output or input. `images` are their digests; `key` is of everything else that the numbers depend on.
    """

    key: str
    layers: tuple[str, ...]
    images: tuple[str, ...]
    rounded: dict[Precision, Rounded]
    score: NDArray[np.float32]
    square: NDArray[np.float32]

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
        """The sensitivity table at C precisions, whose widths are all among the terms."""
        s = self._by_precision(self.score, precisions).reshape(len(self.score), -1)
        half = 0.5 * s.T @ s / len(s)
        own = np.kron(np.eye(len(self.layers)), np.ones((len(precisions),) * 2)).astype(bool)
        inter = np.where(own, 0.0, SHRINKAGE * half)
        return SensitivityTable(
            self.layers,
            tuple(precisions),
            half.diagonal().reshape(len(self.layers), len(precisions)),
            0.5 * (inter + inter.T),
            0.5 * self._by_precision(self.square, precisions).mean(0),
            samples=len(s),
            seed=seed,
            metric=METRIC,
            fingerprint=fingerprint,
        )

    def _by_precision(self, terms: NDArray[np.float32], precisions: Sequence[Precision]) -> NDArray[np.float64]:
        """Terms (N, L, T) as sums (N, L, C) of a precision's weight and input term."""
        sums = [
            sum(terms[..., self.terms.index(term)].astype(np.float64) for term in widths(precision))
            for precision in precisions
        ]
        return np.stack(sums, axis=-1)


def widths(*precisions: Precision) -> tuple[Precision, ...]:
    """The terms of precisions: the widths of weights, then those of inputs that are not float, ascending."""
    weights = {Precision(precision.w) for precision in precisions}
    inputs = {Precision(FLOAT_BITS, precision.a) for precision in precisions} - {Precision(FLOAT_BITS)}
    return (*sorted(weights), *sorted(inputs))
