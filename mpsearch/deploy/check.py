"""Checking an exported file in its runtime: what it computes, by which kernels, how fast, and how large it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

from hwmodel import InputError
from mpsearch.deploy.finished import FinishedModel, finished_model
from mpsearch.deploy.speed import Speed, timed
from mpsearch.export.plan import golden
from mpsearch.show.console import Console

GOLDEN_SAMPLES, GOLDEN_BATCH = 64, 8

Array = NDArray[Any]


class Runner(Protocol):
    """A file in its runtime."""

    def run(self, leaves: Sequence[Array]) -> Sequence[Array]:
        """The outputs as real numbers, for the tensors (N, …) of a call."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An exported file: its metadata, the `runtime` with its version, and the `form` that its golden plan is for.

    `pair` gives the file and, where that is there, the float network with so many threads, 0 for all;
    `integer_layers` and `layers` count what the runtime computes in integers and in all, `kernels` its operations by
    name. It is timed with `threads` of these names.
    """

    metadata: dict[str, str]
    runtime: str
    form: str
    pair: Callable[[FinishedModel, int], tuple[Runner, Runner | None]]
    integer_layers: int | None
    layers: int | None
    kernels: dict[str, int]
    remark: str | None = None
    threads: Mapping[str, int] = field(default_factory=lambda: {"1": 1, "all": 0})


@dataclass(frozen=True, slots=True)
class Agreement:
    """An exported file beside the golden plan on some samples: the share whose largest output is the same, that of
    outputs that are the same to six digits, and the error (root mean square) relative to how far outputs vary."""

    samples: int
    decisions: float
    identical: float
    error: float


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check has found. `metrics` are by state: "float", "packed", "exported"; `speed` by threads ("1", "all"),
    then "exported" and "float"."""

    file: str
    runtime: str
    configuration: str
    size_bytes: int
    packed_bytes: int
    metrics: dict[str, dict[str, float]]
    samples: int
    agreement: Agreement
    integer_layers: int | None
    layers: int | None
    kernels: dict[str, int]
    speed: dict[str, dict[str, Speed]]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        result: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return result


def check(path: Path, folder: Path, opened: Opened, console: Console, seconds: float) -> Checked:
    """Measures an opened file on the validation samples of the run that it was exported from.

    Raises InputError where it is of another model or configuration, and where there are no samples to measure on.
    """
    model = _origin(path, folder, opened.metadata, console)
    if opened.remark is not None:
        console.note(opened.remark)
    judge = model.loaded.judge
    runner, _ = opened.pair(model, 0)
    exported = judge.measure(_AsModule(runner, model.network.outputs, judge.reference[0]))
    metrics = {"float": judge.truth, "packed": model.record["metrics"]["finished"], "exported": exported}
    leaves = [leaf.numpy() for leaf in next(judge.split.batches(1))[0].single().leaves]
    speed = {}
    for name, threads in opened.threads.items():
        ours, real = opened.pair(model, threads)
        runs: dict[str, Callable[[], object]] = {"exported": lambda ours=ours: ours.run(leaves)}  # type: ignore[misc]
        if real is not None:
            runs["float"] = lambda real=real: real.run(leaves)  # type: ignore[misc]
        speed[name] = timed(runs, seconds)
    return Checked(
        str(path),
        opened.runtime,
        model.name,
        _bytes(path),
        model.record["size_bytes"],
        metrics,
        len(judge.split),
        _agreement(model, runner, opened.form),
        opened.integer_layers,
        opened.layers,
        opened.kernels,
        speed,
    )


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _origin(path: Path, folder: Path, metadata: dict[str, str], console: Console) -> FinishedModel:
    """The finished model that a file was exported from."""
    name = metadata.get("mpsearch.configuration")
    if name is None:
        raise InputError(f"{path} does not say what it was exported from; expected a file of `mpsearch export`")
    model = finished_model(folder, name, console)
    if metadata.get("mpsearch.fingerprint") != model.loaded.model.fingerprint:
        raise InputError(
            f"{path} was exported from {metadata.get('mpsearch.model')} with other weights than those of the run in "
            f"{folder} ({model.loaded.model.reference}); name its own run with --run"
        )
    if json.loads(metadata.get("mpsearch.bits", "null")) != model.record["config"]:
        raise InputError(f"{path} has other bits than {name} in {folder}: export it again")
    return model


class _AsModule(nn.Module):
    """A runner as the module that it was made from."""

    def __init__(self, runner: Runner, outputs: TreeSpec, like: Any) -> None:
        super().__init__()
        self.runner, self.outputs = runner, outputs
        self.shapes = [tuple(leaf.shape[1:]) for leaf in tree_leaves(like)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves = tree_leaves((args, dict(sorted(kwargs.items()))))
        found = self.runner.run([leaf.float().numpy() if leaf.is_floating_point() else leaf.numpy() for leaf in leaves])
        shaped = [
            torch.from_numpy(part).reshape(len(part), *shape) for part, shape in zip(found, self.shapes, strict=True)
        ]
        return tree_unflatten(shaped, self.outputs)


def _agreement(model: FinishedModel, runner: Runner, form: str) -> Agreement:
    plan = model.plan(form)
    same = equal = count = values = 0
    squared = spread = 0.0
    for samples, _ in model.loaded.judge.split.batches(GOLDEN_BATCH):
        leaves = [leaf.numpy() for leaf in samples.single().leaves]
        expected = golden.outputs(plan, golden.execute(plan, *leaves))
        for ours, theirs in zip(runner.run(leaves), expected, strict=True):
            one, other = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
            same += int((one.argmax(1) == other.argmax(1)).sum())
            equal += int(np.isclose(one, other, rtol=1e-6, atol=1e-6 * float(np.abs(other).max())).sum())
            squared, spread = squared + float(((one - other) ** 2).sum()), spread + float(np.var(other) * other.size)
            values, count = values + other.size, count + len(other)
        if count >= GOLDEN_SAMPLES * len(expected):
            break
    return Agreement(count // len(expected), same / count, equal / values, float(np.sqrt(squared / max(spread, 1e-30))))
