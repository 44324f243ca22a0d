"""Pictures of a front: an info record first, a thin renderer that draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwmodel import FLOAT_BITS, BitConfig, LayerTable
from hwmodel.filesize import PACKED, title_of
from mpsearch.files.folder import Json
from mpsearch.files.picture import write_picture
from mpsearch.optimization.baselines import Answer
from mpsearch.optimization.front import ParetoFront
from mpsearch.request.budgets import COSTS, Cost
from mpsearch.show.compare import Comparison, Measured, measured_points
from mpsearch.tasks.figure import KL, headline, read_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BIT_COLOURS = {2: "#440154", 3: "#3b528b", 4: "#21918c", 5: "#3aa876", 6: "#5ec962", 7: "#a5db36", 8: "#fde725"}
Box = tuple[float, float, float, float]  # left, bottom, width and height, in fractions of the axes
INSETS: tuple[Box, ...] = ((0.045, 0.08, 0.17, 0.2), (0.4, 0.7, 0.17, 0.2), (0.8, 0.38, 0.17, 0.2))
RUN_COLOURS = ("#3b528b", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#666666")


@dataclass(frozen=True, slots=True)
class FrontInfo:
    """What the picture of a front shows: a cost, the loss in nats, and the bits of the chosen configuration.

    `cost` is in the unit of `axis`, `scale` of which make one of the cost's own; `other` is a third objective, in the
    unit of `other_axis`, that colours the points. Their budgets are None where they have none. `measured` are the
    finished points, `plain` what plain rounding of a uniform answer leaves, `history` the hypervolume by generation.
    `bits` are those of weights, `inputs` of activations.
    """

    title: str
    axis: str
    scale: float
    cost: NDArray[np.float64]
    loss: NDArray[np.float64]
    other_axis: str
    other: NDArray[np.float64] | None
    other_budget: float | None
    budget: float | None
    budget_text: str
    chosen: tuple[float, float]
    references: tuple[tuple[str, float, float], ...]
    measured: tuple[Measured, ...]
    plain: tuple[Measured, ...]
    history: tuple[float, ...]
    layers: tuple[str, ...]
    bits: tuple[float, ...]
    inputs: tuple[int, ...]
    weights: tuple[int, ...]


def front_info(
    front: ParetoFront,
    index: int,
    budgets: Mapping[str, float],
    table: LayerTable,
    answers: Sequence[Answer],
    finished: Sequence[tuple[str, Json]] = (),
    tight: Json | None = None,
    size_of: str = PACKED,
) -> FrontInfo:
    """The picture of `front` with point `index` chosen; `tight` is what the folder says of its tight end, `size_of`
    the file whose size counts."""
    name, *others = front.names[1:]
    cost = COSTS[name]
    loss, values = front.objectives[:, 0], front.objectives[:, 1] * cost.scale
    config: BitConfig = front.config(index)
    other = COSTS[others[0]] if others else None
    limit = budgets[name] * cost.scale if name in budgets else None
    return FrontInfo(
        model_title(table.model),
        axis_title(cost, size_of),
        cost.scale,
        values,
        loss,
        axis_title(other, size_of) if other else "",
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
        measured_points(front, finished, name),
        _plain(tight or {}, answers),
        front.hypervolume,
        table.names,
        config.wbits,
        tuple(precision.a for precision in config.precisions),
        tuple(layer.n_weights for layer in table),
    )


def _plain(tight: Json, answers: Sequence[Answer]) -> tuple[Measured, ...]:
    """The uniform answer that was rounded plainly and measured, if it is one of these answers."""
    if not tight:
        return ()
    row, figures = tight["rows"][tight["at"]], read_figures(tight)
    if not any(answer.name.endswith(f" {row['bits']}") and answer.loss == row["loss"] for answer in answers):
        return ()
    first, plain = headline(figures), tight["measured"]["plain"]
    value = None if first is None else plain[first.name]
    return (Measured(row["bits"], -1, row["cost"], row["loss"], plain[KL], first, value),)


def model_title(reference: str) -> str:
    """A model's reference as people say it."""
    return reference.split("?")[0].removeprefix("torchvision:").rsplit("/", 1)[-1]


def axis_title(cost: Cost, size_of: str = PACKED) -> str:
    """What stands beside the axis of a cost, with its unit; sizes are those of the file that `size_of` names."""
    return f"{title_of(size_of) if cost.name == 'size_bytes' else cost.title}, {cost.shown}"


def _colour(bits: float) -> str:
    """The colour of a width, or of the one that is nearest to a rate."""
    return BIT_COLOURS[max(min(BIT_COLOURS), round(bits))]


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
    _draw_measured(top, info.measured, info.scale, "#e08214", _legend("measured, finished", info.measured))
    _draw_measured(top, info.plain, info.scale, "#777777", _legend("measured, uniform, rounded plainly", info.plain))
    top.margins(y=0.12)  # room for the words above the highest point
    top.set(yscale="log", xlabel=info.axis, ylabel="KL divergence, nats", title=info.title)
    top.grid(alpha=0.3, which="both")
    top.legend(loc="upper right", framealpha=0.95)
    _draw_history(top, info)
    bars = range(len(info.layers))
    bottom.bar(bars, info.bits, color=[_colour(bits) for bits in info.bits], width=0.9)
    quantized = [(bar, bits) for bar, bits in zip(bars, info.inputs, strict=True) if bits != FLOAT_BITS]
    if quantized:
        bottom.plot(*zip(*quantized, strict=True), "_", color="#222222", ms=260 / len(info.layers), mew=1.6)
    step = max(1, len(info.layers) // 27)
    bottom.set_xticks(list(bars)[::step], list(info.layers)[::step], rotation=90, fontsize=6)
    bottom.set(
        ylabel="bits of weights, inputs (–)" if quantized else "weight bits",
        ylim=(0, 8.5),
        xlim=(-0.7, len(info.layers) - 0.3),
    )
    share = {bits: sum(w for w, b in zip(info.weights, info.bits, strict=True) if b == bits) for bits in set(info.bits)}
    handles = [
        Patch(color=_colour(bits), label=f"{bits:g} bits: {100 * count / sum(info.weights):.0f} %")
        for bits, count in sorted(share.items())
    ]
    bottom.legend(
        handles=handles,
        title="share of the weights",
        title_fontsize=7,
        fontsize=7,
        ncols=min(len(handles), 6),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
    )
    write_picture(figure, path)


def _legend(name: str, measured: Sequence[Measured]) -> str:
    """With the metric that stands beside the points."""
    titles = dict.fromkeys(point.figure.title for point in measured if point.figure is not None)
    return f"{name} ({', '.join(titles)})" if titles else name


def _draw_measured(axes: Axes, measured: Sequence[Measured], scale: float, colour: str, name: str) -> None:
    """Finished points, each with a line from what was predicted and its first metric, on the side away from that."""
    from matplotlib.patheffects import withStroke

    for number, point in enumerate(measured):
        cost = point.cost * scale
        axes.plot([cost, cost], [point.predicted, point.kl], color=colour, lw=0.8, alpha=0.6, zorder=3)
        once = name if number == 0 else None
        axes.plot(cost, point.kl, "D", ms=6, color=colour, mec="white", mew=0.7, zorder=5, label=once)
        if point.figure is not None and point.value is not None:
            text, at = point.figure.brief(point.value), (cost, point.kl)
            beside = (6, -11 if point.kl < point.predicted else 5)
            label = axes.annotate(
                text, at, textcoords="offset points", xytext=beside, fontsize=8, color=colour, zorder=6
            )
            label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _draw_history(axes: Axes, info: FrontInfo) -> None:
    """The hypervolume by generation, small, where fewest points are; the last value is that of the filled front."""
    history = info.history
    if len(history) < 3:
        return
    axes.autoscale_view()
    places = axes.transAxes.inverted().transform(axes.transData.transform(np.stack([info.cost, info.loss], axis=1)))
    inset = axes.inset_axes(emptiest(places), zorder=6)
    inset.plot(range(1, len(history)), history[:-1], color="#3b528b", lw=1)
    inset.plot(len(history), history[-1], ".", color="#d62728", ms=5)
    inset.set_title("hypervolume by generation", fontsize=6, pad=2)
    inset.tick_params(labelsize=5, length=2, pad=1)
    inset.set_xlim(0, len(history) * 1.05)
    inset.grid(alpha=0.3)


def emptiest(places: NDArray[np.float64]) -> Box:
    """The one of `INSETS` that hides the fewest of points (P, 2) in fractions of the axes, its ticks counted in."""

    def hidden(box: Box) -> int:
        left, bottom, width, height = box
        x, y = places.T
        beside = (x > left - 0.05) & (x < left + width + 0.02)
        return int((beside & (y > bottom - 0.05) & (y < bottom + height + 0.06)).sum())

    return min(INSETS, key=hidden)


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Writes several fronts over each other, and what was measured of them, as a PNG."""
    from matplotlib.figure import Figure

    cost = COSTS[comparison.cost]
    figure = Figure(figsize=(9, 5.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for number, front in enumerate(comparison.fronts):
        colour = RUN_COLOURS[number % len(RUN_COLOURS)]
        costs = np.array(front.cost) * cost.scale
        axes.plot(costs, front.loss, "-", drawstyle="steps-post", color=colour, lw=1.4, alpha=0.9, label=front.run)
        name = _legend(f"{front.run}, measured", front.measured)
        _draw_measured(axes, front.measured, cost.scale, colour, name)
    titles = dict.fromkeys(model_title(front.model) for front in comparison.fronts)
    axes.set(yscale="log", xlabel=axis_title(cost), ylabel="KL divergence, nats", title=", ".join(titles))
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper right", framealpha=0.95)
    axes.margins(x=0.07)
    write_picture(figure, path)
