"""One unit to fit, and how far it is from its target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx

from recon.compute.arithmetic import BATCH, fast, picked, positions_of, slices
from recon.compute.store import Store
from recon.fit.squared_error import mean_square
from recon.graph.layers import Layer
from recon.graph.network import Network
from recon.graph.unit_by_unit import Passing
from recon.settings import Settings
from recon.statistics.fisher import Fisher

HELD_BACK = 8
POSITIONS, FEWEST = 32_768, 8  # of maps that a step learns from, and samples


def held_back(count: int) -> Tensor:
    """Of `count` samples, the indices of those that judge what blocks have learned; all where there are few."""
    return torch.arange(HELD_BACK - 1 if count >= HELD_BACK else 0, count, HELD_BACK)


@dataclass(frozen=True)
class UnitTask:
    """A unit's `module` and layers with the tensors x that it reads (N, …), and the float ones; their outputs, in
    `store`, are the targets (N, …), with their Fisher `weights` (…). `floating` says which outputs are real numbers:
    these alone are fitted. `metrics` are those of the outputs of layers (O, O), by name, where they are known.
    `generator` draws what is random.

    Every eighth sample is held back for early stopping. Without `early_stopping`, all samples teach.
    """

    name: str
    module: fx.GraphModule
    layers: dict[str, Layer]
    x: tuple[Tensor, ...]
    float_module: fx.GraphModule
    float_layers: dict[str, Layer]
    float_x: tuple[Tensor, ...]
    store: Store
    floating: tuple[bool, ...]
    weights: tuple[Tensor, ...] | None
    metrics: Mapping[str, Tensor]
    early_stopping: bool
    generator: torch.Generator

    @cached_property
    def float_outputs(self) -> tuple[Tensor, ...]:
        """All that the float unit writes (N, …)."""
        return self.store.map(self.float_module, self.float_x)

    @property
    def targets(self) -> tuple[Tensor, ...]:
        """The outputs to come near to (N, …)."""
        return self._fitted(self.float_outputs)

    def draw(self, most: int) -> Tensor:
        """Indices of samples to learn from, at random: `most` of them or, with early stopping, fewer of large maps,
        whose positions tell much the same."""
        positions = max(map(positions_of, (*self.x, *self.targets)))
        count = min(most, max(FEWEST, POSITIONS // positions)) if self.early_stopping else most
        return self.taught[torch.randint(len(self.taught), (count,), generator=self.generator)]

    @cached_property
    def taught(self) -> Tensor:
        """Indices of the samples to learn from."""
        index = torch.arange(len(self.x[0]))
        return index[index % HELD_BACK != HELD_BACK - 1] if self.early_stopping else index

    @cached_property
    def held_back(self) -> Tensor:
        """Indices of the samples that early stopping goes by."""
        return held_back(len(self.x[0]))

    def error(self, pick: Tensor, module: fx.GraphModule | None = None) -> Tensor:
        """The mean (weighted) squared error of the outputs for the samples `pick`, over `power`; those of another
        `module` that is to do the unit's work, where there is one."""
        where = self.store.device
        with fast(where):
            outputs = (module or self.module)(*picked(self.x, pick, where))
        targets = [target[pick].to(where) for target in self.targets]
        return self._mean_square(self._fitted(outputs), targets) / self.power

    @torch.no_grad()
    def loss(self) -> float:
        """The error on the held-back samples, for the weights that the layers have now."""
        picks = torch.split(self.held_back, BATCH)
        return sum(float(self.error(pick)) * len(pick) for pick in picks) / len(self.held_back)

    @cached_property
    def power(self) -> float:
        """The error of an output of zero: what errors are measured against."""
        where, total, count = self.store.device, 0.0, len(self.targets[0])
        for part in slices(count):
            outputs = [target[part].to(where) for target in self.targets]
            zeros = [torch.zeros_like(z) for z in outputs]
            total += float(self._mean_square(outputs, zeros)) * len(outputs[0])
        return max(total / count, 1e-30)

    def _fitted(self, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(z for z, real in zip(outputs, self.floating, strict=True) if real)

    def _mean_square(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """The mean over the elements of all outputs."""
        weights = self.weights or (None,) * len(outputs)
        errors = [mean_square(*parts) for parts in zip(outputs, targets, weights, strict=True)]
        if len(errors) == 1:
            return errors[0]
        sizes = [z.numel() for z in outputs]
        return torch.stack([error * (size / sum(sizes)) for error, size in zip(errors, sizes, strict=True)]).sum()


def walk(
    work: Network, truth: Network, leaves: Sequence[Tensor], settings: Settings, fisher: Fisher, store: Store
) -> Iterator[UnitTask]:
    """The units of `work` in order, each with what the units before it, as they are by then, make of samples, whose
    tensors are (N, …); `truth` is the float network with the same units."""
    of_float_inputs = settings.target == "float network"
    passing, float_passing = Passing(work, leaves), Passing(truth, leaves)
    for index, (unit, float_unit) in enumerate(zip(work.units, truth.units, strict=True)):
        x = passing.read(unit)
        float_x = float_passing.read(float_unit) if of_float_inputs else x
        layers, float_layers = ({name: network.layer(name) for name in unit.layers} for network in (work, truth))
        task = UnitTask(
            unit.name,
            unit.module,
            layers,
            x,
            float_unit.module,
            float_layers,
            float_x,
            store,
            unit.floating,
            fisher.weights(unit.name),
            fisher.metrics,
            settings.early_stopping,
            torch.Generator().manual_seed(settings.seed * 1009 + index),
        )
        yield task
        written = store.map(unit.module, x)
        passing.write(unit, written)
        float_passing.write(float_unit, task.float_outputs if of_float_inputs else written)
