"""Why a configuration is what it is: what each layer costs and loses, with whom, and what another bit would change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel import BitConfig, CostTable, InputError, LayerTable, Precision
from mpsearch.sensitivity.table import SensitivityTable


@dataclass(frozen=True, slots=True)
class Step:
    """The change that the next precision of a layer, and of those tied to it, would bring to the whole."""

    precision: Precision
    loss: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LayerWhy:
    """One layer of a configuration; losses in nats.

    `alone` is its own term, `together` its half of all interactions with other layers: over the layers, they add up to
    the predicted loss. `partner` is the layer that it interacts with most, `up` and `down` are None where there is no
    higher or lower precision that the layer may have.
    """

    layer: str
    precision: Precision
    size_bytes: int
    alone: float
    together: float
    partner: str
    up: Step | None
    down: Step | None


@dataclass(frozen=True, slots=True)
class Interaction:
    """What two layers lose (above 0) or save (below 0) together, both orders of the pair, in nats."""

    first: str
    second: str
    loss: float


@dataclass(frozen=True, slots=True)
class Why:
    """An explained configuration: `loss` is the sum over layers, `size_bytes` the sum over layers and `fixed_bytes`."""

    name: str
    loss: float
    size_bytes: int
    fixed_bytes: int
    layers: tuple[LayerWhy, ...]
    interactions: tuple[Interaction, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        data = asdict(self)
        for layer in data["layers"]:
            for part in (layer, layer["up"], layer["down"]):
                if part is not None:
                    part["precision"] = str(Precision(**part["precision"]))
        return data


def explain(
    name: str,
    config: BitConfig,
    table: LayerTable,
    costs: CostTable,
    sensitivity: SensitivityTable,
    allowed: Mapping[str, Sequence[Precision]],
    strongest: int = 10,
) -> Why:
    """Explains `config`. Raises InputError where it has a precision that was not measured."""
    choice = np.array([_index(layer, precision, sensitivity) for layer, precision in config.to_json().items()])
    columns = np.array([costs.precisions.index(precision) for precision in sensitivity.precisions])
    sizes = costs.weight_bytes[:, columns]
    at = np.arange(len(table))
    flat = at * len(sensitivity.precisions) + choice
    inter = sensitivity.inter[np.ix_(flat, flat)]
    alone, together = sensitivity.intra[at, choice], inter.sum(axis=1)

    def step(members: tuple[int, ...], direction: int) -> Step | None:
        usable = [c for c, p in enumerate(sensitivity.precisions) if all(p in allowed[table.names[m]] for m in members)]
        beyond = [c for c in usable if (c - choice[members[0]]) * direction > 0]
        if not beyond:
            return None
        moved = choice.copy()
        moved[list(members)] = min(beyond, key=lambda c: abs(c - choice[members[0]]))
        return Step(
            sensitivity.precisions[moved[members[0]]],
            sensitivity.loss(moved) - sensitivity.loss(choice),
            int(sizes[at, moved].sum() - sizes[at, choice].sum()),
        )

    gene = {member: members for members in table.genes for member in members}
    layers = tuple(
        LayerWhy(
            layer,
            config.precisions[i],
            int(sizes[i, choice[i]]),
            float(alone[i]),
            float(together[i]),
            table.names[int(np.abs(inter[i]).argmax())] if inter[i].any() else "",
            step(gene[i], 1),
            step(gene[i], -1),
        )
        for i, layer in enumerate(table.names)
    )
    return Why(
        name,
        sensitivity.loss(choice),
        int(sizes[at, choice].sum()) + costs.fixed_bytes,
        costs.fixed_bytes,
        layers,
        _strongest(table.names, inter, strongest),
    )


def _strongest(names: Sequence[str], inter: NDArray[np.float64], count: int) -> tuple[Interaction, ...]:
    first, second = np.triu_indices(len(names), 1)
    order = np.argsort(-np.abs(inter[first, second]), kind="stable")[:count]
    pairs = [Interaction(names[first[i]], names[second[i]], 2 * float(inter[first[i], second[i]])) for i in order]
    return tuple(pair for pair in pairs if pair.loss)


def _index(layer: str, text: str, sensitivity: SensitivityTable) -> int:
    precision = Precision.parse(text)
    if precision not in sensitivity.precisions:
        known = ", ".join(map(str, sensitivity.precisions))
        raise InputError(f"{layer} has {precision}, which was not measured in this run; it knows {known}")
    return sensitivity.precisions.index(precision)
