"""The picture of a run, made from what its folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hwmodel import LayerTable
from mpsearch.files.folder import RunFolder
from mpsearch.optimization.baselines import Answer
from mpsearch.optimization.front import ParetoFront
from mpsearch.run.artifacts import finished_configs, read_costs
from mpsearch.show.plots import draw_front, front_info


def draw(
    folder: RunFolder, found: ParetoFront, table: LayerTable, beside: Sequence[Answer], path: Path | None = None
) -> None:
    """Draws a front, the chosen configuration and finished points to `path`, else to the folder's `front.png`."""
    tight = folder.read_json("tight.json") if folder.file("tight.json").is_file() else {}
    size_of = read_costs(folder)[0].size_of
    info = front_info(found, found.best(), dict(found.budgets), table, beside, finished_configs(folder), tight, size_of)
    draw_front(info, path or folder.file("front.png"))
