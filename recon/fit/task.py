"""One unit to fit, and how far it is from its target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from recon.compute.arithmetic import BATCH, batches, channels_last, fast, positions_of
from recon.compute.store import Store
from recon.fit.squared_error import mean_square
from recon.graph.layers import Layer
from recon.graph.network import Network
from recon.graph.run import unit_inputs
from recon.settings import Settings
from recon.statistics.fisher import Fisher

HELD_BACK = 8
POSITIONS, FEWEST = 32_768, 8  # of maps that a step learns from, and images


def held_back(count: int) -> Tensor:
    """Of `count` images, the indices of those that judge what blocks have learned; all where there are few."""
    return torch.arange(HELD_BACK - 1 if count >= HELD_BACK else 0, count, HELD_BACK)


@dataclass(frozen=True)
class UnitTask:
    """A unit's `module` and layers with its inputs x (N, …), and the float ones; their outputs, in `store`, are the
    target (N, …), with their Fisher weight (…). `metrics` are those of the outputs of layers (O, O), by name, where
    they are known. `generator` draws what is random.

    Every eighth image is held back: it judges what the others taught. Where not `judged`, all images teach.
    """

    name: str
    module: nn.Module
    layers: dict[str, Layer]
    x: Tensor
    float_module: nn.Module
    float_layers: dict[str, Layer]
    float_x: Tensor
    store: Store
    weight: Tensor | None
    metrics: Mapping[str, Tensor]
    judged: bool
    generator: torch.Generator

    @cached_property
    def target(self) -> Tensor:
        """The outputs to come near to (N, …)."""
        return self.store.map(self.float_module, self.float_x)

    def draw(self, most: int) -> Tensor:
        """Indices of images to learn from, at random: `most` of them or, where `judged`, fewer of large maps, whose
        positions tell much the same."""
        positions = max(map(positions_of, (self.x, self.target)))
        count = min(most, max(FEWEST, POSITIONS // positions)) if self.judged else most
        return self.taught[torch.randint(len(self.taught), (count,), generator=self.generator)]

    @cached_property
    def taught(self) -> Tensor:
        """Indices of the images to learn from."""
        index = torch.arange(len(self.x))
        return index[index % HELD_BACK != HELD_BACK - 1] if self.judged else index

    @cached_property
    def held_back(self) -> Tensor:
        """Indices of the images to judge by."""
        return held_back(len(self.x))

    def error(self, pick: Tensor, module: nn.Module | None = None) -> Tensor:
        """The mean (weighted) squared error of the outputs for the images `pick`, over `power`; those of another
        `module` that is to do the unit's work, where there is one."""
        where = self.store.device
        with fast(where):
            output = (module or self.module)(channels_last(self.x[pick].to(where)))
        return mean_square(output, self.target[pick].to(where), self.weight) / self.power

    @torch.no_grad()
    def loss(self) -> float:
        """The error on the held-back images, for the weights that the layers have now."""
        picks = torch.split(self.held_back, BATCH)
        return sum(float(self.error(pick)) * len(pick) for pick in picks) / len(self.held_back)

    @cached_property
    def power(self) -> float:
        """The error of an output of zero: what errors are measured against."""
        outputs = batches(self.target, self.store.device)
        total = sum(float(mean_square(z, torch.zeros_like(z), self.weight)) * len(z) for z in outputs)
        return max(total / len(self.target), 1e-30)


def walk(
    work: Network, truth: Network, images: Tensor, settings: Settings, fisher: Fisher, store: Store
) -> Iterator[UnitTask]:
    """The units of `work` in order, each with the inputs that the units before it, as they are by then, make of images
    (N, C, H, W); `truth` is the float network with the same units."""
    x = float_x = images
    of_float_inputs = settings.target == "float network"
    for index, (unit, float_unit) in enumerate(zip(work.units, truth.units, strict=True)):
        if not work.chained:
            x = unit_inputs(work, unit, images, store)
            float_x = unit_inputs(truth, float_unit, images, store) if of_float_inputs else x
        layers, float_layers = ({name: network.layer(name) for name in unit.layers} for network in (work, truth))
        generator = torch.Generator().manual_seed(settings.seed * 1009 + index)
        weight = fisher.weight(unit.name)
        task = UnitTask(
            unit.name,
            unit.module,
            layers,
            x,
            float_unit.module,
            float_layers,
            float_x,
            store,
            weight,
            fisher.metrics,
            settings.judged,
            generator,
        )
        yield task
        if work.chained:
            x = store.map(unit.module, x)
            float_x = task.target if of_float_inputs else x
