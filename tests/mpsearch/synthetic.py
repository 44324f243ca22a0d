"""Networks with realistic sensitivities, for tests and benchmarks of the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hwmodel.cost import CostTable
from hwmodel.layer import LayerSpec, LayerTable
from hwmodel.precision import Precision
from mpsearch.optimization.build import build_problem, with_budgets
from mpsearch.optimization.problem import BitProblem
from mpsearch.sensitivity.table import SensitivityTable

BITS = (2, 3, 4, 6, 8)
SAMPLES = 256


def network(
    n_layers: int = 53, bits: Sequence[int] = BITS, seed: int = 0, ties: Mapping[int, str] | None = None
) -> tuple[LayerTable, CostTable, SensitivityTable]:
    """Layers l0, l1, … with weights over 3 decades and a loss that falls 4-fold a bit and spans decades over layers.

    The interactions are those of SᵀS / 256 for per-sample scores S (256, L·C) that a layer's precisions mostly share.
    """
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.normal(9, 1.6, n_layers)).astype(int) // 8 * 8 + 16
    pixels = rng.choice([49, 196, 784, 3136], n_layers)
    side = np.sqrt(pixels).astype(int)
    ties = ties or {}
    layers = tuple(
        LayerSpec(
            f"l{i}", "conv", 1, int(weights[i]), (1, 1), (1, 1), (1, 1), 1,
            (int(side[i]),) * 2, (int(side[i]),) * 2, f"b{i // 3}", ties.get(i, f"l{i}"),
        )
        for i in range(n_layers)
    )  # fmt: skip
    precisions = tuple(Precision(b) for b in bits)
    widths = np.array(bits)
    code_bits = weights[:, None] * widths
    costs = CostTable(
        tuple(layer.name for layer in layers), precisions, -(-code_bits // 8) + 40, code_bits,
        code_bits * pixels[:, None] * 32.0, 20_000,
    )  # fmt: skip
    base = np.exp(rng.normal(np.log(3e-2), 1.5, n_layers))
    noise = np.exp(rng.normal(0, 0.15, (n_layers, len(bits))))
    scale = np.sqrt(base[:, None] * 4.0 ** (2 - widths) * noise)
    shared, own = rng.normal(size=(SAMPLES, n_layers, 1)), rng.normal(size=(SAMPLES, n_layers, len(bits)))
    scores = ((shared + 0.7 * own) / np.hypot(1, 0.7) * scale).reshape(SAMPLES, -1)
    omega = scores.T @ scores / SAMPLES
    omega = (omega + omega.T) / 2
    intra = omega.diagonal().reshape(scale.shape).copy()
    layer = np.repeat(np.arange(n_layers), len(bits))
    omega[layer[:, None] == layer] = 0.0
    names = tuple(layer.name for layer in layers)
    table = SensitivityTable(names, precisions, intra, omega, intra, SAMPLES, seed, "synthetic", f"synthetic-{seed}")
    return LayerTable("synthetic", ((3, 224, 224),), layers), costs, table


def problem(
    n_layers: int = 53,
    bits: Sequence[int] = BITS,
    seed: int = 0,
    additive: bool = False,
    budgets: Mapping[str, float] | None = None,
    objectives: Sequence[str] = ("loss", "size_bytes"),
) -> BitProblem:
    """The search problem of `network`, first and last layer at the highest precision."""
    table, costs, sensitivity = network(n_layers, bits, seed)
    ends = {name: [sensitivity.precisions[-1]] for name in (table.names[0], table.names[-1])}
    return build_problem(table, costs, sensitivity.additive() if additive else sensitivity, ends, budgets, objectives)


def at_fraction(built: BitProblem, fraction: float) -> BitProblem:
    """The problem with a size budget `fraction` of the way from the smallest to the largest configuration."""
    ends = built.evaluate(np.stack([np.zeros(len(built.genes)), built.sizes - 1]).astype(np.int16))[:, 1]
    return with_budgets(built, {"size_bytes": float(np.floor(ends[0] + fraction * (ends[1] - ends[0])))})
