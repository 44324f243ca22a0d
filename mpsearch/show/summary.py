"""The summary of a run for reading."""

from __future__ import annotations

from rich.table import Table

from hwmodel.filesize import title_of
from mpsearch.files.folder import Json
from mpsearch.request.budgets import COSTS, NEED_DEVICE
from mpsearch.show.columns import columns, heading, shown_cost
from mpsearch.tasks.figure import read_figures


def summary_rows(summary: Json) -> Table:
    """The summary for reading."""
    view = Table(box=None, show_header=False, pad_edge=False)
    for what, figure in _summary_lines(summary):
        view.add_row(what, figure)
    return view


def _summary_lines(summary: Json) -> list[tuple[str, str]]:
    """The summary for reading: (what, figure) rows."""

    def cost(name: str, key: str = "") -> str:
        limit, value = summary.get(COSTS[name].field), summary[key or name]
        text = COSTS[name].text(value)
        if limit is None:
            return text
        of = COSTS[name].text(limit).removesuffix(" bytes")
        return f"{text} of {of} ({100 * value / limit:.1f} % of the budget)"

    labels = "" if summary["labelled"] else ", without labels"
    bounded = [name for name in COSTS if name != "size_bytes" and name in summary]
    on = {name: f" on {summary['device']}" if name in NEED_DEVICE else "" for name in bounded}
    return [
        *(
            [(title_of(summary["size_of"]), cost("size_bytes", "file_bytes"))]
            if "size_of" in summary
            else [("packed file", cost("size_bytes"))]
        ),
        *[(f"{COSTS[name].title}{on[name]}", cost(name)) for name in bounded],
        (
            "weights only",
            f"{summary['weights_only_bytes']:,.0f} bytes, {summary['mean_weight_bits']:.2f} bits a weight",
        ),
        *[("activations", f"{', '.join(map(str, bits))} bits") for bits in (summary.get("activation_bits"),) if bits],
        *([("grids of weights", "symmetric")] if "symmetric" in summary else []),
        *_metric_lines(summary),
        ("measured on", f"{summary['validation_samples']:,} validation samples{labels}"),
        ("edge layers at 8 bits", ", ".join(summary["edge_layers_at_8_bits"]) or "none: searched like any other"),
        ("computed on", f"{summary['compute']}, {summary['threads']} threads"),
        ("seconds", ", ".join(f"{step} {value:.1f}" for step, value in summary["seconds"].items())),
        ("peak memory", f"{summary['peak_rss_bytes'] / 1e9:.2f} GB"),
    ]


def _metric_lines(summary: Json) -> list[tuple[str, str]]:
    """Every metric of the float network, where it is not compared with itself, of plain rounding, and finished."""
    states = {"float": "float", "plain": "plain rounding", "finished": "reconstructed"}
    return [
        (f"{figure.title} {name}", figure.text(summary["metrics"][state][figure.name]))
        for figure in read_figures(summary)
        for state, name in states.items()
        if figure.labelled or state != "float"
    ]


def tight_rows(tight: Json) -> list[Table | str]:
    """The same bits everywhere at the tightest budgets of a front, beside the front; nothing where there are none."""
    if not tight:
        return []
    name = tight["cost"]
    title = f">{heading(name)}"
    view = columns("bits everywhere", title, ">predicted KL", ">point of the front", title, ">predicted KL")
    for row in tight["rows"]:
        plain = (row["bits"].replace("A32", ""), shown_cost(name, row["cost"]), f"{row['loss']:.4g}")
        view.add_row(*plain, str(row["point"]), shown_cost(name, row["point_cost"]), f"{row['point_loss']:.4g}")
    return [
        "at the tight end of the same front, the same bits everywhere beside searched ones:",
        view,
        _tightest(tight),
    ]


def _tightest(tight: Json) -> str:
    """What plain rounding leaves of the network at the tightest of the budgets."""
    truth, plain = tight["measured"]["float"], tight["measured"]["plain"]
    figures = read_figures(tight)
    texts = [
        f"{figure.title} {figure.text(plain[figure.name])}"
        + (f" of {figure.text(truth[figure.name])}" if figure.labelled else "")
        for figure in dict.fromkeys((figures[0], figures[-1]))
    ]
    row = tight["rows"][tight["at"]]
    return (
        f"{row['bits'].replace('A32', '')} everywhere, rounded plainly, keeps {', '.join(texts)} "
        f"(measured on {tight['samples']:,} samples)"
    )
