"""Pictures of a front: an info record first, a thin renderer that draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodel import BitConfig, LayerTable
from mpsearch.budgets import COSTS, Cost
from mpsearch.exact import Answer
from mpsearch.front import ParetoFront

BIT_COLOURS = {2: "#440154", 3: "#3b528b", 4: "#21918c", 5: "#3aa876", 6: "#5ec962", 7: "#a5db36", 8: "#fde725"}


@dataclass(frozen=True, slots=True)
class FrontInfo:
    """What the picture of a front shows: a cost, the loss in nats, and the bits of the chosen configuration.

    `cost` is in the unit of `axis`; `other` is a third objective, in the unit of `other_axis`, that colours the points.
    Their budgets are None where they have none.
    """

    title: str
    axis: str
    cost: NDArray[np.float64]
    loss: NDArray[np.float64]
    other_axis: str
    other: NDArray[np.float64] | None
    other_budget: float | None
    budget: float | None
    budget_text: str
    chosen: tuple[float, float]
    references: tuple[tuple[str, float, float], ...]
    layers: tuple[str, ...]
    bits: tuple[int, ...]
    weights: tuple[int, ...]


def front_info(
    front: ParetoFront, index: int, budgets: Mapping[str, float], table: LayerTable, answers: Sequence[Answer]
) -> FrontInfo:
    """The picture of `front` with point `index` chosen."""
    name, *others = front.names[1:]
    cost = COSTS[name]
    loss, values = front.objectives[:, 0], front.objectives[:, 1] * cost.scale
    config: BitConfig = front.config(index)
    other = COSTS[others[0]] if others else None
    limit = budgets[name] * cost.scale if name in budgets else None
    return FrontInfo(
        table.model.split("?")[0].removeprefix("torchvision:"),
        _axis(cost),
        values,
        loss,
        _axis(other) if other else "",
        front.objectives[:, 2] * other.scale if other else None,
        budgets[other.name] * other.scale if other and other.name in budgets else None,
        limit,
        "" if limit is None else f"budget {limit:g} {cost.shown}",
        (float(values[index]), float(loss[index])),
        tuple(
            (answer.name, dict(answer.costs)[name] * cost.scale, answer.loss)
            for answer in answers
            if answer.name.startswith("uniform")  # greedy and exact answers would hide behind the chosen point
        ),
        table.names,
        config.wbits,
        tuple(layer.n_weights for layer in table),
    )


def _axis(cost: Cost) -> str:
    return f"{'packed file' if cost.name == 'size_bytes' else cost.title}, {cost.shown}"


def draw_front(info: FrontInfo, path: Path) -> None:
    """Writes the front above the chosen configuration's bits per layer, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(9, 7), dpi=120, layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[3, 1.5])
    if info.other is None:
        top.plot(info.cost, info.loss, ".-", color="#3b528b", ms=4, lw=1, label="Pareto front")
    else:
        points = top.scatter(info.cost, info.loss, c=info.other, s=6, cmap="viridis", label="Pareto front")
        bar = figure.colorbar(points, ax=top, label=info.other_axis)
        if info.other_budget is not None:
            bar.ax.axhline(info.other_budget, color="#d62728", lw=2, ls="--")
    for name, cost, loss in info.references:
        top.plot(cost, loss, "s", ms=6, color="#999999", zorder=3)
        beside = {"textcoords": "offset points", "xytext": (0, 8), "ha": "center", "fontsize": 8, "color": "#555555"}
        top.annotate(name.removesuffix("A32"), (cost, loss), **beside)
    if info.budget is not None:
        top.axvline(info.budget, color="#d62728", lw=1, ls="--", label=info.budget_text)
    top.plot(*info.chosen, "*", color="#d62728", ms=15, zorder=4, label="chosen")
    top.set(yscale="log", xlabel=info.axis, ylabel="predicted KL divergence, nats", title=info.title)
    top.grid(alpha=0.3, which="both")
    top.legend()
    bars = range(len(info.layers))
    bottom.bar(bars, info.bits, color=[BIT_COLOURS[bits] for bits in info.bits], width=0.9)
    step = max(1, len(info.layers) // 27)
    bottom.set_xticks(list(bars)[::step], list(info.layers)[::step], rotation=90, fontsize=6)
    bottom.set(ylabel="weight bits", ylim=(0, 8.5), xlim=(-0.7, len(info.layers) - 0.3))
    share = {bits: sum(w for w, b in zip(info.weights, info.bits, strict=True) if b == bits) for bits in set(info.bits)}
    handles = [
        Patch(color=BIT_COLOURS[bits], label=f"{bits} bits: {100 * count / sum(info.weights):.0f} % of weights")
        for bits, count in sorted(share.items())
    ]
    bottom.legend(handles=handles, fontsize=7, ncols=len(handles), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, metadata={"Software": None})
