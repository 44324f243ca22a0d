"""mpsearch from Python: `search` gives a front, the front's `finish` a low-bit model.

    front = mpsearch.search(model, loader, "1.5MB")
    finished = front.finish("budget")
    finished.model(images)

It is the same steps as on the command line, with the network and the samples in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

from torch import nn

from hwmodel import BitConfig, InputError
from hwmodel.files import write_whole
from mpsearch.export.packed import fill_packed
from mpsearch.files.folder import Json, RunFolder
from mpsearch.optimization.baselines import answers
from mpsearch.optimization.front import LOSS, ParetoFront
from mpsearch.optimization.picks import picked
from mpsearch.optimization.problem import BitProblem
from mpsearch.request.budgets import COSTS
from mpsearch.request.options import RunOptions
from mpsearch.run.artifacts import finished_configs, read_boxes, read_sensitivity
from mpsearch.run.finalize import finalize_step
from mpsearch.run.loaded import Given
from mpsearch.run.page import write_page
from mpsearch.run.picture import draw
from mpsearch.run.steps import Run
from mpsearch.show.console import Console
from mpsearch.show.explorer import ExploredRun, frame, page
from mpsearch.sources.batches import positional_inputs
from mpsearch.sources.data import from_memory
from mpsearch.sources.detectors import NeuralPart
from mpsearch.sources.models import in_memory
from mpsearch.sources.proposals import prepared
from mpsearch.tasks.detection import NAME as DETECTION
from mpsearch.tasks.figure import finished_text
from mpsearch.tasks.registry import load_task
from mpsearch.tasks.task import Task
from mpsearch.tasks.torchvision_detection import torchvision_task

_SHOWN = 12  # points of a front in a notebook


@dataclass(frozen=True, slots=True)
class Point:
    """One configuration of a front: its bits, its predicted divergence in nats, and what it costs by name."""

    index: int
    config: BitConfig
    loss_nats: float
    costs: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class FinishedModel:
    """A low-bit model: `model` takes and returns what the float one does, with the weights of the packed file `path`.

    `report` is what the run folder keeps of it: metrics of the float network, of plain rounding and of this one, the
    blocks, the seconds. The folder is there as long as this record or its front.
    """

    model: nn.Module
    config: BitConfig
    report: Json
    path: Path
    job: Run

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """By state, "float", "plain" and "finished", the value of every metric by name."""
        found: dict[str, dict[str, float]] = self.report["metrics"]
        return found

    @property
    def size_bytes(self) -> int:
        """The size of the packed file."""
        return int(self.report["size_bytes"])

    def save(self, path: Path | str) -> Path:
        """Copies the packed file; `load_packed(path, model=float_model)` reads it back. Raises InputError where it
        cannot be written."""
        target = Path(path)
        write_whole(target, self.path.read_bytes())
        return target

    def __repr__(self) -> str:
        return f"FinishedModel({COSTS['size_bytes'].text(self.size_bytes)}, {finished_text(self.report)})"


@dataclass(frozen=True, eq=False)
class Front:
    """The Pareto front of a search: its points by ascending cost, as a sequence."""

    record: ParetoFront
    problem: BitProblem
    job: Run

    def __len__(self) -> int:
        return len(self.record)

    def __getitem__(self, index: int) -> Point:
        at = range(len(self))[index]
        config = self.record.config(at)
        loss = float(self.record.objectives[at, self.record.names.index(LOSS)])
        return Point(at, config, loss, self.job.costs_of(config))

    def __iter__(self) -> Iterator[Point]:
        return (self[index] for index in range(len(self)))

    def pick(self, which: str | int = "budget") -> Point:
        """The point at the `budget`, the `knee`, or one by its number. Raises InputError for anything else."""
        return self[self._named(which)[1]]

    def finish(self, which: str | int = "budget") -> FinishedModel:
        """Reconstructs a point as `pick` names it, measures it, and gives the model."""
        name, index = self._named(which)
        config = self.record.config(index)
        loaded = self.job.loaded
        with loaded.folder.held(note=loaded.console.note):
            report = finalize_step(loaded, config, name)
        path = loaded.folder.file(f"model-{name}.safetensors")
        return FinishedModel(fill_packed(path, loaded.network).model, config, report, path, self.job)

    def plot(self, path: Path | str = "front.png") -> Path:
        """Draws the front, the point at the budget and finished points into a .png file, and gives its path."""
        target = Path(path)
        draw(self.job.folder, self.record, self.job.table, answers(self.problem), target)
        return target

    def explore(self, path: Path | str = "front.html") -> Path:
        """Writes the page of all configurations, which a notebook shows for a front, and gives its path."""
        target = Path(path)
        write_page([self._explored()], target)
        return target

    def _named(self, which: str | int) -> tuple[str, int]:
        text = str(which)
        if text.startswith("all:"):
            raise InputError(f"one point at a time: budget, knee, or a number below {len(self)}; got {text!r}")
        return picked(self.record, text)[0]

    def _rows(self) -> list[tuple[str, ...]]:
        best = self.pick().index
        rows = []
        for index in self.record.thin(_SHOWN):
            point = self[index]
            costs = [COSTS[name].text(point.costs[name]) for name in self.record.names if name != LOSS]
            bits = sum(point.config.wbits) / len(point.config.wbits)
            name = f"{index} ◄" if index == best else str(index)
            rows.append((name, *costs, f"{bits:.2f}", f"{point.loss_nats:.4g}"))
        return rows

    def _head(self) -> tuple[str, ...]:
        titles = [COSTS[name].title for name in self.record.names if name != LOSS]
        return ("point", *titles, "bits a layer", "predicted KL, nats")

    def __repr__(self) -> str:
        lines = [" | ".join(row) for row in (self._head(), *self._rows())]
        return "\n".join([f"Front of {len(self):,} configurations of {self.job.table.model}", *lines])

    def _repr_html_(self) -> str:
        return frame(page([self._explored()])) + self._table()

    def _explored(self) -> ExploredRun:
        job = self.job
        return ExploredRun(
            "front",
            "front.finish(POINT)",
            job.table,
            self.record,
            job.costs,
            read_sensitivity(job.folder).intra,
            None if job.device is None else job.device.name,
            finished_configs(job.folder),
            answers(self.problem),
            read_boxes(job.folder),
        )

    def _table(self) -> str:
        """The front as a table, for where frames are left out."""
        head = "".join(f"<th>{escape(title)}</th>" for title in self._head())
        rows = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in self._rows())
        summary = f"{len(self):,} configurations of {escape(self.job.table.model)}; ◄ is the one at the budget"
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return f"<details><summary>{summary}</summary>{table}</details>"


def search(
    model: nn.Module,
    calibration: Iterable[Any],
    budgets: str | Mapping[str, str | float],
    *,
    validation: Iterable[Any] | None = None,
    task: str | Task = "classification",
    folder: Path | str | None = None,
    **options: Any,
) -> Front:
    """Finds the bit-width of every layer of `model` that fits `budgets` with the least loss.

    `calibration` is an iterable of batches as the model takes them (a tensor, a tuple of positional arguments, a dict
    of keyword arguments), a DataLoader for example; batches of (inputs, targets) will do for a model of one input.
    `validation` is an iterable of (inputs, targets), or of inputs; without it a part of the calibration samples is held
    out. `budgets` is the size of the packed file ("1.5MB"), or a mapping of `size`, `latency`, `energy`,
    `bit operations` and `mean bits` to limits, as text or in bytes, seconds, joules, operations and bits. `task` is a
    task or its name; for a detector it is `mpsearch.tasks.detection.detection(decode)`, or "detection" for one of
    torchvision, whose images are a tensor from 0 to 1. Steps are kept in `folder`, where the same call goes on from
    them, else in a temporary one that lives as long as the front. Further `options` are those of `RunOptions`:
    `wbits=(2, 4, 8)`, `abits=(8,)`, `device="npu-int4"`, `samples=256`, `seed=1`, …

    Raises InputError for anything that does not fit, BudgetError where no configuration meets the budgets.
    """
    known = {option.name for option in fields(RunOptions)} - {"model", "weights", "weights_key", "data", "task"}
    for name in options:
        if name not in known:
            raise InputError(f"search has no option {name!r}; there are {', '.join(sorted(known))}")
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    named = task if isinstance(task, str) else task.name
    record = RunOptions(model=type(model).__name__, data="in memory", task=named, **_limits(budgets), **options)
    loaded = in_memory(model)
    takes = 1 if isinstance(loaded.model, NeuralPart) else positional_inputs(model)
    data = from_memory(calibration, validation, record.samples, record.val_samples or None, takes)
    if isinstance(loaded.model, NeuralPart):
        data = prepared(data, loaded.model)
        task = torchvision_task(loaded.model) if task == DETECTION else task
    given = Given(loaded, data, load_task(task) if isinstance(task, str) else task)
    place = Path(mkdtemp(prefix="mpsearch-") if folder is None else folder)
    job = Run(record, RunFolder(place), Console(), given=given)
    if folder is None:
        finalize(job, shutil.rmtree, place, ignore_errors=True)  # when nothing uses it any more
    with job.folder.held(note=job.console.note):
        job.layers_step()
        problem = job.problem(job.sensitivity_step())
        return Front(job.search_step(problem), problem, job)


def _limits(budgets: str | Mapping[str, str | float]) -> dict[str, Any]:
    """Budgets as run options. Raises InputError for a name that is no cost."""
    if isinstance(budgets, str):
        budgets = {"size": budgets}
    names = {cost.title: cost for cost in COSTS.values()}
    limits: dict[str, Any] = {}
    for title, limit in budgets.items():
        if title not in names:
            raise InputError(f"no budget {title!r}; there are {', '.join(names)}")
        limits[names[title].field] = names[title].parse(limit) if isinstance(limit, str) else limit
    return limits
