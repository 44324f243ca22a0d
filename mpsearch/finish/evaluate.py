"""How good a network is on samples: the metrics of a task, and the divergence from the float network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mpsearch.sources.split import Split
from mpsearch.tasks.figure import Figure
from mpsearch.tasks.metric import Metric, Tally
from mpsearch.tasks.task import Call, Look, Task, plainly
from recon.compute.arithmetic import device_of
from recon.graph.network import CapturedModel, Network
from recon.likelihood.likelihood import Likelihood

BATCH = 16  # in single precision: 0.8 of the time of 64, whose maps no cache holds
SHOWN = 4  # samples of a picture
NEAR = 0.1  # of the way from chance to certainty

Batch = tuple[Any, Any, Any]  # outputs, targets, and the float network's outputs


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """Measures networks on a split by `metrics`, KL among them, on `device`.

    `reference` are the float network's outputs, batch after batch, in main memory; `truth` are its own figures by name,
    and `doubts` says in a line each what is odd about them. `call` and `look` are the task's.
    """

    split: Split
    metrics: tuple[Metric, ...]
    reference: tuple[Any, ...]
    device: torch.device
    truth: dict[str, float]
    doubts: tuple[str, ...]
    call: Call
    look: Look | None

    @classmethod
    def of(cls, network: Network, task: Task, likelihood: Likelihood, split: Split) -> Judge:
        """Runs the float network over the split.

        Raises InputError where it gives NaN or infinite outputs, or where targets do not fit them.
        """
        metrics = task.metrics_of(likelihood, split.labelled)
        cpu = torch.device("cpu")
        batches = [(_on(cpu, outputs), targets) for outputs, targets in outputs_on(split, network.model, task.call)]
        known = [(outputs, targets, outputs) for outputs, targets in batches]
        truth = _gathered({metric.name: metric.start for metric in metrics}, known)
        chance = {metric.name: metric.chance for metric in metrics if metric.chance is not None}
        guessed = _gathered(chance, known)
        doubts = [_near_chance(metric, truth, guessed, len(split)) for metric in metrics if metric.name in guessed]
        reference = tuple(outputs for outputs, _ in batches)
        return cls(split, metrics, reference, network.device, truth, tuple(filter(None, doubts)), task.call, task.look)

    def first(self, count: int) -> Judge:
        """The same on the first samples, `count` or a few more: whole batches."""
        if count >= len(self.split):
            return self
        batches = -(-count // BATCH)
        split, reference = self.split.first(batches * BATCH), self.reference[:batches]
        known = [
            (outputs, targets, outputs) for outputs, (_, targets) in zip(reference, split.batches(BATCH), strict=True)
        ]
        truth = _gathered({metric.name: metric.start for metric in self.metrics}, known)
        return replace(self, split=split, reference=reference, truth=truth, doubts=())

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What the metrics are called, in order."""
        return tuple(metric.figure for metric in self.metrics)

    def shown(self, model: nn.Module) -> list[dict[str, list[Any]]]:
        """What a model in eval mode shows people on the first samples; nothing where the task has no such thing."""
        if self.look is None:
            return []
        samples = next(self.split.batches(SHOWN))[0].to(self.device)
        with torch.no_grad():
            return self.look(self.call(model.to(self.device), samples))

    def measure(self, model: nn.Module) -> dict[str, float]:
        """The metrics by name of a model in eval mode, which is moved to the device.

        Raises InputError where it gives NaN or infinite outputs.
        """
        found = zip(outputs_on(self.split, model.to(self.device), self.call), self.reference, strict=True)
        batches = ((outputs, targets, known) for (outputs, targets), known in found)
        return _gathered({metric.name: metric.start for metric in self.metrics}, batches)


def outputs_on(split: Split, model: nn.Module, call: Call = plainly) -> Iterator[tuple[Any, Any]]:
    """The outputs of a model in eval mode, computed where it is, and the targets, batch after batch."""
    where = device_of(model)
    model = model.overwriting() if isinstance(model, CapturedModel) else model
    for samples, targets in split.batches(BATCH):
        with torch.no_grad():  # inference mode would keep autograd from what comes out
            outputs = call(model, samples.to(where))
        yield outputs, targets


def _on(where: torch.device, outputs: Any) -> Any:
    return tree_map(lambda z: z.to(where) if isinstance(z, Tensor) else z, outputs)


def _device(outputs: Any) -> torch.device:
    return next(z.device for z in tree_leaves(outputs) if isinstance(z, Tensor))


def _gathered(starts: dict[str, Callable[[], Tally]], batches: Iterable[Batch]) -> dict[str, float]:
    """The values of tallies over batches; the last is KL, which finds NaN, so that it sees a batch first."""
    tallies = {name: start() for name, start in starts.items()}
    for outputs, targets, known in batches:
        there = _on(_device(outputs), known)
        for tally in reversed(tallies.values()):
            tally.add(outputs, targets, there)
    return {name: float(tally.value()) for name, tally in tallies.items()}


def _near_chance(metric: Metric, truth: dict[str, float], guessed: dict[str, float], count: int) -> str:
    """A remark where a share of right decisions, in percent, is next to what guessing gives; else nothing.

    That is less than twice as much and a tenth of the way from there to 100, or within two standard errors.
    """
    share, chance = truth[metric.name] / 100, guessed[metric.name] / 100
    limit = max(min(2 * chance, chance + NEAR * (1 - chance)), chance + 2 * math.sqrt(chance * (1 - chance) / count))
    if share >= min(limit, 1):
        return ""
    shown = metric.figure
    return (
        f"the float network's {shown.title} is {shown.text(100 * share)}, guessing gives {shown.text(100 * chance)}: "
        "are the labels those of this network, and the input size and normalisation right?"
    )
