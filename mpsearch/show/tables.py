"""Tables for the terminal and for `report.txt`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from hwmodel import BitConfig, LayerTable, Precision
from hwmodel.breakdown import DeviceCosts
from hwmodel.device import DeviceSpec
from mpsearch.files.folder import Json
from mpsearch.optimization.baselines import Answer
from mpsearch.optimization.front import LOSS, ParetoFront
from mpsearch.request.budgets import COSTS, NEED_DEVICE, share
from mpsearch.show.columns import columns, every_other, heading, shown_cost
from mpsearch.show.compare import Comparison, headline_of
from mpsearch.show.why import Step, Why
from mpsearch.tasks.figure import Figure

MOST_COLUMNS = 7


def not_counted(beside: Mapping[str, int]) -> str:
    """What a device's costs leave out, of the operations `beside` layers; nothing where there are none."""
    listed = ", ".join(f"{name} ({count})" for name, count in beside.items())
    return f"costs on a device are those of layers; not counted: {listed}" if listed else ""


def layer_rows(table: LayerTable, uncounted: bool = True) -> list[Table]:
    """The layer table, its totals, and what is not quantized."""
    view = columns(
        "layer", "kind", "shape", "stride", "out", ">MACs", ">weights", ">inputs", "block", "tie",
        first_to_go=("tie", "block", "inputs", "stride", "kind", "out", "MACs", "shape"),
    )  # fmt: skip
    for layer in table:
        kind = "depthwise" if layer.depthwise else layer.kind
        shape = f"{layer.in_channels}→{layer.out_channels} {layer.kernel[0]}×{layer.kernel[1]}"
        if layer.groups > 1 and not layer.depthwise:
            shape += f" /{layer.groups}"
        tie = "" if layer.tie == layer.name else layer.tie
        size = "×".join(map(str, layer.out_size))
        counts = (f"{layer.macs:,}", f"{layer.n_weights:,}", f"{layer.n_activations:,}")
        view.add_row(layer.name, kind, shape, str(layer.stride[0]), size, *counts, layer.block, tie)
    activations = sum(layer.n_activations for layer in table)
    view.add_section()
    view.add_row("total", "", "", "", "", f"{table.macs:,}", f"{table.n_weights:,}", f"{activations:,}", "", "")
    tables: list[Table] = [view]
    if uncounted and table.uncounted:
        rest = columns("not quantized", "~why")
        for name, reason in table.uncounted:
            rest.add_row(name, reason)
        tables.append(rest)
    return tables


def cost_rows(costs: DeviceCosts) -> list[Table]:
    """Microseconds of every layer at every precision, what binds it, and totals; energy where the device has it.

    One table, or one for each width of activations where there are more precisions than a page is wide.
    """
    if len(costs.precisions) <= MOST_COLUMNS:
        return [_cost_table(costs)]
    widths = sorted({precision.a for precision in costs.precisions}, reverse=True)
    return [_cost_table(costs.at([p for p in costs.precisions if p.a == width])) for width in widths]


def _cost_table(costs: DeviceCosts) -> Table:
    names = [str(precision) for precision in costs.precisions]
    gone = ("binds", *every_other(names))
    view = columns("µs an image", *[f">{name}" for name in names], "binds", first_to_go=gone)
    for index, layer in enumerate(costs.layers):
        binds = ",".join(dict.fromkeys(costs.binds[index].tolist()))
        view.add_row(layer, *[f"{1e6 * seconds:,.2f}" for seconds in costs.latency_s[index]], binds)
    view.add_section()
    view.add_row("total", *[f"{1e6 * seconds:,.2f}" for seconds in costs.latency_s.sum(axis=0)], "")
    for name in ("compute_s", "memory_s", "overhead_s"):
        parts = getattr(costs, name).sum(axis=0)
        view.add_row(f"  {name.removesuffix('_s')}", *[f"{1e6 * seconds:,.2f}" for seconds in parts], "")
    if costs.energy_j is not None:
        view.add_row("energy, µJ", *[f"{1e6 * joules:,.2f}" for joules in costs.energy_j.sum(axis=0)], "")
    return view


def missing_rows(missing: Sequence[tuple[str, Precision]]) -> Table:
    """Layers and precisions that a lookup table has no row for."""
    by_layer: dict[str, list[str]] = {}
    for name, precision in missing:
        by_layer.setdefault(name, []).append(str(precision))
    view = columns("no row in the table: fitted", "~at")
    for name, precisions in by_layer.items():
        view.add_row(name, ", ".join(precisions))
    return view


def devices_rows(devices: Sequence[DeviceSpec]) -> Table:
    """The devices, one a line, with what they run."""
    view = columns("device", "model", "~runs", "~what it is", first_to_go=("runs",))
    for device in devices:
        runs = _few([str(precision) for precision in device.precisions])
        view.add_row(device.name, device.model, runs, device.title)
    return view


def device_rows(device: DeviceSpec) -> list[Table | str]:
    """One device: its title and caution, every number, and the kernels."""
    numbers = columns("number", ">value", "unit", "~source")
    for key, quantity in device.numbers.items():
        numbers.add_row(key, f"{quantity.value:g}", quantity.unit, quantity.source)
    for precision, quantity in sorted(device.kernels.items()):
        numbers.add_row(f"kernel {precision}", f"{quantity.value:g}", quantity.unit, quantity.source)
    head = f"{device.name}: {device.title} ({device.model} model)"
    run = f"batch of {device.batch}, costs are for one image"
    if device.table is None:
        run += f"; float activations run at {device.activation_bits_default} bits where there is no kernel for them"
    flow = f"; dataflow: {device.dataflow}" if device.model == "systolic" else ""
    return [head, *([f"caution: {device.caution}"] if device.caution else []), run + flow, numbers]


def answer_rows(answers: Sequence[Answer], budgets: Mapping[str, float]) -> Table:
    """Uniform, greedy, exact and found answers side by side; `of budget` is the share of the tightest."""
    known = dict(answers[0].costs)
    shown = [name for name in COSTS if name in known and (name in NEED_DEVICE or name in budgets)]
    shown = [name for name in shown if name not in ("size_bytes", "mean_bits")]
    view = columns(
        "answer", ">file bytes", *[f">{heading(name)}" for name in shown], ">of budget", ">mean bits",
        ">predicted KL", "", first_to_go=("mean bits", "of budget", *[heading(name) for name in shown]),
    )  # fmt: skip
    for answer in answers:
        costs = dict(answer.costs)
        fits = "" if answer.feasible else "over budget"
        view.add_row(
            answer.name,
            *[shown_cost(name, costs[name]) for name in ("size_bytes", *shown)],
            f"{100 * share(costs, budgets):.1f} %",
            f"{costs['mean_bits']:.2f}",
            f"{answer.loss:.4g} nats",
            fits,
        )
    return view


def front_rows(
    front: ParetoFront, points: Sequence[int], finished: Sequence[Json] = (), answers: Sequence[Answer] = ()
) -> Table:
    """Points of the front and plain answers, by ascending cost; where one was finished, what was measured beside."""
    measured = {tuple(entry["config"].items()): headline_of(entry) for entry in finished}
    costs, titles = front.names[1:], _titles([figure for _, figure, _ in measured.values()])
    gone = (*[heading(name) for name in costs[1:]], *[title.lstrip(">") for title in titles], "measured KL", "")
    view = columns(
        "point",
        *[f">{heading(name)}" for name in costs],
        ">predicted KL",
        ">measured KL",
        *titles,
        "",
        first_to_go=gone,
    )
    notes = {0: ["smallest"], len(front) - 1: ["largest"]}
    notes.setdefault(front.knee(), []).insert(0, "knee")
    if front.budgets:
        notes.setdefault(front.best(), []).insert(0, "budget")
    rows = []
    for index in points:
        values = dict(zip(front.names, front.objectives[index].tolist(), strict=True))
        rows.append((str(index), values, front.config(index), ", ".join(notes.get(index, []))))
    for answer in answers:
        over = "" if answer.feasible else "over budget"
        rows.append((answer.name.replace("A32", ""), {**dict(answer.costs), LOSS: answer.loss}, answer.config, over))
    for name, values, config, note in sorted(rows, key=lambda row: row[1][costs[0]]):
        kl, figure, value = measured.get(tuple(config.to_json().items()), (None, None, None))
        found = ["" if kl is None else f"{kl:.4g}", *[_value(figure, value)] * len(titles)]
        view.add_row(name, *[shown_cost(cost, values[cost]) for cost in costs], f"{values[LOSS]:.4g}", *found, note)
    return view


def why_rows(why: Why) -> list[Table | str]:
    """An explained configuration: its layers, what the next bits would bring or save, the strongest interactions."""
    steps = (">up", ">Δ loss", ">Δ bytes", ">down", ">Δ loss", ">Δ bytes")
    layers = columns(
        "layer", ">bits", ">bytes", ">alone", ">shared", *steps,
        first_to_go=("Δ bytes", "Δ loss", "down", "up", "shared", "bytes"),
    )  # fmt: skip
    layers.collapse_padding = True
    for layer in why.layers:
        layers.add_row(
            layer.layer, _bits(layer.precision), f"{layer.size_bytes:,}", f"{1e3 * layer.alone:.2f}",
            f"{1e3 * layer.together:+.2f}", *_step(layer.up), *_step(layer.down),
        )  # fmt: skip
    alone, together = sum(layer.alone for layer in why.layers), sum(layer.together for layer in why.layers)
    data = sum(layer.size_bytes for layer in why.layers)
    layers.add_section()
    layers.add_row("total", "", f"{data:,}", f"{1e3 * alone:.2f}", f"{1e3 * together:+.2f}")
    head = (
        f"{why.name}: {why.size_bytes:,} bytes ({why.fixed_bytes:,} of them whatever the bits), "
        f"predicted KL {why.loss:.4g} nats"
    )
    note = (
        "losses in millinats: of the layer alone, its half of all interactions, and what the whole network would\n"
        "lose more, and weigh more, were the layer to go up or down to these bits"
    )
    if not why.interactions:
        return [head, note, layers]
    pairs = columns("strongest interactions", "", ">millinats")
    for pair in why.interactions:
        pairs.add_row(pair.first, pair.second, f"{1e3 * pair.loss:+.2f}")
    return [head, note, layers, pairs]


def _step(step: Step | None) -> tuple[str, str, str]:
    return ("", "", "") if step is None else (_bits(step.precision), f"{1e3 * step.loss:+.2f}", f"{step.size_bytes:+,}")


def _bits(precision: Precision) -> str:
    return str(precision).replace("A32", "").removeprefix("W")


def comparison_rows(comparison: Comparison) -> list[Table | str]:
    """Predicted losses of several fronts within the same costs, their hypervolumes, and what was measured."""
    names = [front.run for front in comparison.fronts]
    losses = columns(f">{heading(comparison.cost)}", *[f">{name}" for name in names], "least", first_to_go=("least",))
    for limit, row in zip(comparison.at, comparison.losses, strict=True):
        known = [loss for loss in row if loss is not None]
        least = [name for name, loss in zip(names, row, strict=True) if loss is not None and loss == min(known)]
        figures = ["" if loss is None else f"{loss:.4g}" for loss in row]
        losses.add_row(
            shown_cost(comparison.cost, limit), *figures, "" if len(least) == len(names) else ", ".join(least)
        )
    losses.add_section()
    losses.add_row("hypervolume", *[f"{front.hypervolume:.4f}" for front in comparison.fronts], "")
    losses.add_row("points", *[f"{len(front.cost):,}" for front in comparison.fronts], "")
    titles = _titles([point.figure for front in comparison.fronts for point in front.measured])
    headings = (f">{heading(comparison.cost)}", ">predicted KL", ">measured KL", *titles)
    measured = columns("finished", "point", *headings, first_to_go=("point",))
    for front in comparison.fronts:
        for point in front.measured:
            cost = shown_cost(comparison.cost, point.cost)
            values = [_value(point.figure, point.value)] * len(titles)
            measured.add_row(front.run, point.name, cost, f"{point.predicted:.4g}", f"{point.kl:.4g}", *values)
    parts: list[Table | str] = ["predicted KL, nats, of the best point within each cost:", losses]
    if not comparison.same_cache:
        parts.append("these predictions come of different sensitivity caches: compare what was measured")
    return parts + ([measured] if measured.row_count else [])


def bit_rows(table: LayerTable, configs: Sequence[tuple[str, BitConfig]]) -> Table:
    """Who got which bits (W, or W/A where activations are quantized): a line a layer, a column a configuration."""
    gone = ("weights", *every_other([name for name, _ in configs]))
    view = columns("layer", ">weights", *[f">{name}" for name, _ in configs], first_to_go=gone)
    view.padding = (0, 0, 0, 0)  # a dozen points with numbers of four digits, none cut off
    for layer in table:
        view.add_row(layer.name, f"{layer.n_weights:,}", *[config[layer.name].short for _, config in configs])
    return view


def _titles(figures: Sequence[Figure | None]) -> list[str]:
    """The heading of a column of first metrics; none where there are none."""
    titles = dict.fromkeys(figure.title for figure in figures if figure is not None)
    return [f">{' or '.join(titles)}"] if titles else []


def _value(figure: Figure | None, value: float | None) -> str:
    return "" if figure is None or value is None else figure.text(value)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
