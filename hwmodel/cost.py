"""What a choice of bits costs, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError
from hwmodel.filesize import PACKED
from hwmodel.layer import LayerTable
from hwmodel.precision import BitConfig, Precision


@dataclass(frozen=True, slots=True)
class CostTable:
    """Additive costs of L layers at C precisions, shape (L, C) each, plus what every configuration pays.

    `weight_bytes` are bytes of the file that `size_of` names, by default the packed one (codes, scales, zero-points,
    biases); a file has `fixed_bytes + weight_bytes[range(L), choice].sum()` bytes, exactly. `code_bits` are the bits of
    the weight codes alone (the weights-only figure of the papers × 8). `bops` are bit operations (MACs × weight bits ×
    activation bits). `latency_s` and `energy_j` are present where a device was given.
    """

    layers: tuple[str, ...]
    precisions: tuple[Precision, ...]
    weight_bytes: NDArray[np.int64]
    code_bits: NDArray[np.int64]
    bops: NDArray[np.float64]
    fixed_bytes: int
    size_of: str = PACKED
    latency_s: NDArray[np.float64] | None = None
    energy_j: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        shape = (len(self.layers), len(self.precisions))
        for name in ("weight_bytes", "code_bits", "bops", "latency_s", "energy_j"):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise InputError(f"cost table: {name} must have shape {shape}, got {array.shape}")


def layer_costs(
    table: LayerTable, costs: CostTable, precisions: tuple[Precision, ...]
) -> dict[str, NDArray[np.float64]]:
    """Additive costs (L, C) by the names that budgets and objectives have, at the columns of `precisions`."""
    columns = [costs.precisions.index(precision) for precision in precisions]
    arrays = {
        "size_bytes": costs.weight_bytes,
        "mean_bits": costs.code_bits / max(table.n_weights, 1),
        "bops": costs.bops,
        "latency_s": costs.latency_s,
        "energy_j": costs.energy_j,
    }
    return {name: array[:, columns].astype(np.float64) for name, array in arrays.items() if array is not None}


def total_costs(table: LayerTable, costs: CostTable, config: BitConfig) -> dict[str, float]:
    """What a configuration costs, by the names that budgets have."""
    choice = [costs.precisions.index(precision) for precision in config.precisions]
    arrays = layer_costs(table, costs, costs.precisions)
    sums = {name: float(array[range(len(choice)), choice].sum()) for name, array in arrays.items()}
    return {**sums, "size_bytes": sums["size_bytes"] + costs.fixed_bytes}
