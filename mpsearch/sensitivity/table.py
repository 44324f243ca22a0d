"""What a choice of bits loses, layer by layer and pair by pair."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError
from hwmodel.precision import Precision


@dataclass(frozen=True, slots=True)
class SensitivityTable:
    """A quadratic model of the expected KL divergence (nats) of L layers at C precisions, in ascending order.

    `intra` (L, C) is what a layer loses alone, at least 0. `inter` (L·C, L·C), index `l * C + c`, is symmetric and
    zero inside a layer's own block. `diagonal` (L, C) is the diagonal Fisher's view of `intra`, for comparison. The
    predicted loss of a choice c is `sum_l intra[l, c_l] + sum_{l != m} inter[l * C + c_l, m * C + c_m]`: both orders
    of a pair are counted. `coded_bytes` (L, C) are those of a layer whose weights are entropy-coded, as measured, and 0
    where they are not; None where nothing was rounded.
    Raises InputError where a shape, a value or the symmetry is wrong.
    """

    layers: tuple[str, ...]
    precisions: tuple[Precision, ...]
    intra: NDArray[np.float64]
    inter: NDArray[np.float64]
    diagonal: NDArray[np.float64]
    samples: int
    seed: int
    metric: str
    fingerprint: str
    coded_bytes: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        n_layers, n_choices = len(self.layers), len(self.precisions)
        if list(self.precisions) != sorted(set(self.precisions)):
            raise InputError(f"sensitivity table: precisions must ascend, got {', '.join(map(str, self.precisions))}")
        alone = (n_layers, n_choices)
        shapes = {"intra": alone, "inter": (n_layers * n_choices,) * 2, "diagonal": alone}
        shapes |= {} if self.coded_bytes is None else {"coded_bytes": alone}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise InputError(f"sensitivity table: {name} must have shape {shape}, got {array.shape}")
            if not np.isfinite(array).all():
                raise InputError(f"sensitivity table: {name} must be finite; look for NaN in the weights or images")
        for name in ("intra", "diagonal"):
            if getattr(self, name).min(initial=0) < 0:
                raise InputError(f"sensitivity table: {name} must be at least 0, got {getattr(self, name).min():g}")
        if not np.array_equal(self.inter, self.inter.T):
            raise InputError("sensitivity table: inter must be symmetric; pass (inter + inter.T) / 2")
        blocks = self.inter.reshape(n_layers, n_choices, n_layers, n_choices)
        if np.einsum("lclk->lck", blocks).any():
            raise InputError("sensitivity table: inter must be zero inside a layer's own block; that part is intra")

    @classmethod
    def unmeasured(cls, layers: tuple[str, ...], precisions: tuple[Precision, ...]) -> SensitivityTable:
        """No loss anywhere: for questions about costs alone."""
        alone, pairs = (len(layers), len(precisions)), len(layers) * len(precisions)
        return cls(layers, precisions, np.zeros(alone), np.zeros((pairs, pairs)), np.zeros(alone), 0, 0, "none", "")

    def additive(self) -> SensitivityTable:
        """The same table without interactions between layers."""
        return replace(self, inter=np.zeros_like(self.inter))

    def loss(self, choices: NDArray[np.integer]) -> float:
        """The predicted loss (nats) of one choice (L,) of precision indices: the plain formula above."""
        n_layers, n_choices = self.intra.shape
        flat = np.arange(n_layers) * n_choices + choices
        return float(self.intra.ravel()[flat].sum() + self.inter[np.ix_(flat, flat)].sum())
