"""The page of a front: one HTML file that shows every configuration of one or several runs and loads nothing.

Its text, style and code are the files of `page/`. What it shows is in it as JSON; choices and losses are compressed
columns, and costs of configurations are summed over layers by the page.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel import BitConfig, CostTable, LayerTable
from hwmodel.cost import layer_costs, total_costs
from hwmodel.layer import LayerSpec
from mpsearch.files.folder import Json
from mpsearch.optimization.baselines import Answer
from mpsearch.optimization.front import LOSS, ParetoFront
from mpsearch.request.budgets import COSTS
from mpsearch.show.plots import axis_title, model_title
from mpsearch.tasks.figure import KL, headline, read_figures

SCRIPTS = ("format.js", "data.js", "plot.js", "layers.js", "chosen.js", "main.js")
STATES = ("float", "plain", "finished")
_TYPES = {"|u1": "u1", "<f4": "f4", "<f8": "f8"}  # little-endian, as browsers hold them


@dataclass(frozen=True, slots=True)
class ExploredRun:
    """What the page shows of a run: its front, what layers cost there, and what has been finished.

    `name` is what the run is called beside others, `command` what finishes its point number POINT. `alone` (L, C) is
    the predicted loss of layers without interactions, in nats, at the front's precisions. `answers` are drawn beside.
    `boxes` are WebP pictures of what finished detectors find, by name.
    """

    name: str
    command: str
    table: LayerTable
    front: ParetoFront
    costs: CostTable
    alone: NDArray[np.float64]
    device: str | None
    finished: Sequence[tuple[str, Json]]
    answers: Sequence[Answer]
    boxes: Mapping[str, bytes] = field(default_factory=dict)

    def to_json(self) -> Json:
        """What the page reads. Raises InputError where a finished configuration is damaged."""
        front = self.front
        by_layer = layer_costs(self.table, self.costs, front.precisions)
        records = [self._finished_json(name, record) for name, record in self.finished]
        shown = [figure.title for _, record in self.finished if (figure := headline(read_figures(record))) is not None]
        return {
            "name": self.name,
            "command": self.command,
            "title": model_title(self.table.model),
            "device": self.device,
            "layers": [
                {"name": layer.name, "shape": _shape(layer), "weights": layer.n_weights} for layer in self.table
            ],
            "precisions": [str(precision) for precision in front.precisions],
            "costs": [
                {
                    "name": name,
                    "title": COSTS[name].title,
                    "axis": axis_title(COSTS[name], self.costs.size_of),
                    "unit": COSTS[name].shown,
                    "scale": COSTS[name].scale,
                    "objective": name in front.names,
                    "fixed": self.costs.fixed_bytes if name == "size_bytes" else 0,
                    "by_layer": column(values),
                }
                for name, values in by_layer.items()
            ],
            "budgets": {name: limit for name, limit in front.budgets if name in by_layer},
            "loss": column(front.objectives[:, front.names.index(LOSS)].astype(np.float32)),
            "alone": column(self.alone.astype(np.float32)),
            "bits": column(front.choices.T.astype(np.uint8)),
            "best": front.best(),
            "knee": front.knee(),
            "history": [float(f"{value:.6g}") for value in front.hypervolume],
            "evaluations": front.evaluations,
            "references": [
                {
                    "name": answer.name.removeprefix("uniform ").removesuffix("A32"),
                    "loss": answer.loss,
                    "costs": self._costs(answer.config),
                }
                for answer in self.answers
                if answer.name.startswith("uniform")  # greedy and exact answers would hide behind the front
            ],
            "headline": shown[0] if shown else "",
            "finished": records,
        }

    def _costs(self, config: BitConfig) -> dict[str, float]:
        return total_costs(self.table, self.costs, config)

    def _index(self, config: BitConfig) -> int | None:
        """The point of the front that has this configuration, None where there is none."""
        known = self.front.precisions
        if config.layers != self.front.layers or not set(config.precisions) <= set(known):
            return None
        hits = (self.front.choices == [known.index(precision) for precision in config.precisions]).all(axis=1)
        return int(hits.argmax()) if hits.any() else None

    def _finished_json(self, name: str, record: Json) -> Json:
        config, figures = BitConfig.from_json(record["config"]), read_figures(record)
        priced = set(config.precisions) <= set(self.costs.precisions)
        first, values = headline(figures), record["metrics"]
        return {
            "name": name,
            "index": self._index(config),
            "precisions": [str(precision) for precision in config.precisions],
            "costs": {
                **(self._costs(config) if priced else {}),
                "size_bytes": record.get("file_bytes", record["size_bytes"]),
            },
            "kl": values["finished"][KL] if math.isfinite(values["finished"][KL]) else None,
            "label": "" if first is None else first.brief(values["finished"][first.name]),
            "samples": record["validation_samples"],
            "boxes": base64.b64encode(self.boxes[name]).decode() if name in self.boxes else None,
            "figures": [
                {"title": figure.title, "values": [figure.text(values[state][figure.name]) for state in STATES]}
                for figure in figures
            ],
        }


def page(runs: Sequence[ExploredRun]) -> str:
    """The HTML of one or several runs, the first of them chosen. Raises InputError where one is damaged."""
    titles = dict.fromkeys(model_title(run.table.model) for run in runs)
    data = json.dumps({"runs": [run.to_json() for run in runs]}, separators=(",", ":"), allow_nan=False)
    parts = {
        "TITLE": escape(f"{', '.join(titles)}: bits against loss"),
        "VERSION": version("mpsearch"),
        "STYLE": _text("page.css"),
        "SCRIPT": "\n".join(['"use strict";', *map(_text, SCRIPTS)]),
        "DATA": data.replace("<", "\\u003c"),  # so that no name in it ends the element
    }
    return re.sub(r"@([A-Z]+)@", lambda match: parts[match[1]], _text("page.html"))


def frame(text: str, height: int = 1100) -> str:
    """A page as an element of another one, which it can neither read nor change."""
    rights = "allow-scripts allow-downloads"
    style = f"width: 100%; height: {height}px; border: 0"
    return f'<iframe title="mpsearch front" sandbox="{rights}" style="{style}" srcdoc="{escape(text)}"></iframe>'


def column(values: NDArray[Any]) -> dict[str, str]:
    """An array (any shape, row by row) as the page unpacks it: zlib in base64, with its type."""
    packed = zlib.compress(np.ascontiguousarray(values).tobytes(), 9)
    return {"type": _TYPES[values.dtype.str], "data": base64.b64encode(packed).decode()}


def _shape(layer: LayerSpec) -> str:
    kind = "depthwise" if layer.depthwise else layer.kind
    shape = f"{kind} {layer.in_channels}→{layer.out_channels}"
    return shape if layer.kernel == (1, 1) else f"{shape}, {layer.kernel[0]}×{layer.kernel[1]}"


def _text(name: str) -> str:
    return (files("mpsearch.show") / "page" / name).read_text(encoding="utf-8")
