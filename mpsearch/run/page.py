"""The page of runs, made from what their folders hold."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodel import CostTable, LayerTable
from mpsearch.files.folder import RunFolder
from mpsearch.optimization.baselines import Answer, answers
from mpsearch.optimization.front import ParetoFront
from mpsearch.run.artifacts import (
    finished_configs,
    read_boxes,
    read_costs,
    read_front,
    read_layers,
    read_problem,
    read_sensitivity,
)
from mpsearch.show.explorer import ExploredRun, page


def read_explored(folder: RunFolder, name: str) -> ExploredRun:
    """What the page shows of a folder's run, `name` beside other runs.

    Raises InputError where something is missing or damaged, or the front is of an older sensitivity cache.
    """
    found, table, costs = read_front(folder), read_layers(folder), read_costs(folder)[0]
    device = folder.read_json("costs.json").get("device")
    beside, alone = answers(read_problem(folder)), read_sensitivity(folder).intra
    return explored(folder, name, table, found, costs, alone, device, beside)


def explored(
    folder: RunFolder,
    name: str,
    table: LayerTable,
    found: ParetoFront,
    costs: CostTable,
    alone: NDArray[np.float64],
    device: str | None,
    beside: Sequence[Answer],
) -> ExploredRun:
    """What the page shows of a run whose front is at hand, with what is finished in its folder."""
    command = f"mpsearch finalize {shlex.quote(str(folder.path))} --pick POINT"
    finished, boxes = finished_configs(folder), read_boxes(folder)
    return ExploredRun(name, command, table, found, costs, alone, device, finished, beside, boxes)


def write_page(runs: Sequence[ExploredRun], path: Path) -> None:
    """Writes the page of runs in one step. Raises InputError where that cannot be done."""
    RunFolder(path.parent).write(path.name, page(runs))
