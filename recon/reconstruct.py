"""Block reconstruction: learn the rounding of one unit after another, then polish the whole network.

Each unit gets the inputs that the already quantized prefix gives and is fitted to the float unit's output, weighted by
the Fisher diagonal (BRECQ, arXiv 2102.05426, algorithm 1), from a second-order start. The float unit's output is the
one for the same inputs: fitted to the float network's, as BRECQ does it, units learn to shrink what a disturbed input
leaves uncertain, and on the real MobileNetV2 the errors fall while the network's divergence rises by half.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from hwmodel import BitConfig, InputError
from recon.attach import Layer, adam, attach, bias_of, detach, harden, rounding_of, stored_weight
from recon.checkpoint import Progress
from recon.compute import BATCH, batches, channels_last, device, fast, map_batches
from recon.fisher import fisher_diagonal
from recon.network import Network, Unit
from recon.polish import polish
from recon.quantizer import QuantizedWeight, nearest
from recon.report import BlockReport
from recon.rounding import Rounding, RoundingName, StraightThrough, cosine
from recon.run import unit_inputs
from recon.start import second_order_start

FEWEST_IMAGES = 2
NEGLIGIBLE = 1e-4  # of the output's power: what 8 bits leave, and not worth a gradient step
HELD_BACK = 8

States = dict[str, tuple[Rounding, Tensor]]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reconstruct. `steps` are per unit, `polish_steps` for the whole network at the end; rates are Adam's, of
    codes in code units, of log-scales and biases.

    `regulariser` weighs AdaRound's push to integers (0.1 for MobileNetV2-like networks, 0.01 for ResNets); the
    straight-through rounding does not use it.
    """

    steps: int = 40
    polish_steps: int = 400
    batch: int = 32
    seed: int = 0
    rounding: RoundingName = "straight-through"
    weighting: Literal["fisher", "mse"] = "fisher"
    code_rate: float = 1e-3
    other_rate: float = 1e-4
    polish_rate: float = 1e-4
    regulariser: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("polish_steps", 0), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """The finished layers: stored weights and half-precision biases (O,) by layer name, and a report per unit."""

    weights: dict[str, QuantizedWeight]
    biases: dict[str, Tensor]
    reports: tuple[BlockReport, ...]


def quantized(network: Network, weights: dict[str, QuantizedWeight], biases: dict[str, Tensor]) -> Network:
    """A copy of `network` that computes with the given stored weights and biases."""
    result = network.copy()
    for name, weight in weights.items():
        layer = result.layer(name)
        layer.weight.data = channels_last(weight.dequantize().to(layer.weight.device))
        bias_of(layer).data = biases[name].float().to(layer.weight.device)
    return result


def nearest_weights(network: Network, config: BitConfig) -> dict[str, QuantizedWeight]:
    """Plain rounding of every layer."""
    return {name: nearest(network.layer(name).weight, config[name].w) for name in config.layers}


def half_biases(network: Network) -> dict[str, Tensor]:
    """Every layer's bias (O,) at half-precision values. Raises InputError on overflow."""
    return {name: to_half(bias_of(network.layer(name)), name) for name in network.table.names}


def to_half(bias: Tensor, name: str) -> Tensor:
    """A layer's bias (O,) at half-precision values, float32. Raises InputError on overflow."""
    half = bias.detach().half().float()
    if not torch.isfinite(half).all():
        raise InputError(f"layer {name!r}: biases must be below 65504 to be stored in half precision")
    return half


def reconstruct(
    network: Network,
    images: Tensor,
    config: BitConfig,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    on_block: Callable[[BlockReport], None] = lambda report: None,
    on_polish: Callable[[int, float], None] = lambda step, loss: None,
) -> Reconstruction:
    """Finishes `network` at the bits of `config` with images (N, C, H, W), normalised for it; it is not changed.

    `progress` keeps finished units on disk, so that an interrupted call continues where it was. `on_block` is called
    after every unit, `on_polish` with (step, KL in nats) during the polish. Raises InputError for too few images.
    """
    settings = settings or Settings()
    if len(images) < FEWEST_IMAGES:
        raise InputError(f"reconstruction needs at least {FEWEST_IMAGES} calibration images, got {len(images)}")
    work = network.copy()
    fisher = fisher_diagonal(network, images, settings.seed) if settings.weighting == "fisher" else {}
    reports: list[BlockReport] = []
    x = images
    for index, (unit, float_unit) in enumerate(zip(work.units, network.units, strict=True)):
        if not network.chained:
            x = unit_inputs(work, unit, images)
        layers = {name: work.layer(name) for name in unit.layers}
        report = progress.restore(unit.name, layers) if progress else None
        if report is None:
            target = map_batches(float_unit.module, x)
            task = UnitTask(unit, layers, x, target, fisher.get(unit.name))
            report = _fit_unit(task, config, settings, torch.Generator().manual_seed(settings.seed * 1009 + index))
            if progress:
                progress.save(report, layers)
        reports.append(report)
        on_block(report)
        if network.chained:
            x = map_batches(unit.module, x)
    if settings.polish_steps:
        polish(work, network, images, settings, progress, on_polish)
    layers = {name: work.layer(name) for name in work.table.names}
    stored = {name: stored_weight(layer) for name, layer in layers.items()}
    biases = {name: to_half(bias_of(layer), name) for name, layer in layers.items()}
    return Reconstruction(stored, biases, tuple(reports))


@dataclass(frozen=True)
class UnitTask:
    """One unit to fit: its layers, quantized-prefix inputs x (N, …), float outputs (N, …), Fisher weight (…).

    Every eighth image is held back: it judges what the others taught.
    """

    unit: Unit
    layers: dict[str, Layer]
    x: Tensor
    target: Tensor
    weight: Tensor | None

    @property
    def taught(self) -> Tensor:
        """Indices of the images to learn from."""
        index = torch.arange(len(self.x))
        return index[index % HELD_BACK != HELD_BACK - 1]

    @property
    def held_back(self) -> Tensor:
        """Indices of the images to judge by; all where there are few."""
        return torch.arange(HELD_BACK - 1 if len(self.x) >= HELD_BACK else 0, len(self.x), HELD_BACK)

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean (weighted) squared error of a batch of outputs."""
        squared = (output.float() - target.float()).square()
        return (squared if self.weight is None else squared * self.weight).mean()

    @torch.no_grad()
    def loss(self) -> float:
        """The error on the held-back images over `power`, for the weights that the layers have now."""
        total = 0.0
        with fast():
            for pick in torch.split(self.held_back, BATCH):
                output = self.unit.module(channels_last(self.x[pick].to(device())))
                total += float(self.error(output, self.target[pick].to(device()))) * len(pick)
        return total / len(self.held_back) / self.power

    @cached_property
    def power(self) -> float:
        """The error of an output of zero: what errors are measured against."""
        total = sum(float(self.error(torch.zeros_like(t), t)) * len(t) for t in batches(self.target))
        return max(total / len(self.target), 1e-30)


def _fit_unit(task: UnitTask, config: BitConfig, settings: Settings, generator: torch.Generator) -> BlockReport:
    """The best, on held-back images, of plain rounding, the second-order start, and what descent makes of it."""
    started = time.perf_counter()
    bits = tuple(config[name].w for name in task.layers)
    floats = {name: layer.weight.detach().clone() for name, layer in task.layers.items()}
    for name, layer in task.layers.items():
        stored = nearest(layer.weight, config[name].w)
        attach(layer, StraightThrough(stored.codes.float(), stored.grid))
    before, plain = task.loss(), _states(task.layers)
    if before < NEGLIGIBLE:
        return BlockReport(task.unit.name, bits, before, before, 0, time.perf_counter() - started, "enough")

    for name, layer in task.layers.items():
        detach(layer, floats[name])
    second_order_start(task.unit, task.layers, task.x, config, settings.rounding)
    start = _states(task.layers)
    learned, after = _decided(task)
    if settings.steps:
        _put(task.layers, start)
        _descend(task, settings, generator)
        descended, loss = _decided(task)
        if loss < after:
            learned, after = descended, loss
    outcome: Literal["reconstructed", "nearest"] = "reconstructed" if after <= before else "nearest"
    _put(task.layers, learned if after <= before else plain)
    seconds = time.perf_counter() - started
    return BlockReport(task.unit.name, bits, before, min(after, before), settings.steps, seconds, outcome)


def _states(layers: dict[str, Layer]) -> States:
    """Copies of the layers' roundings and biases."""
    return {
        name: (copy.deepcopy(rounding_of(layer)), bias_of(layer).detach().clone()) for name, layer in layers.items()
    }


def _put(layers: dict[str, Layer], states: States) -> None:
    for name, (rounding, bias) in states.items():
        attach(layers[name], rounding)
        bias_of(layers[name]).data = bias


def _decided(task: UnitTask) -> tuple[States, float]:
    """The states of the unit with every rounding decided, and the loss they leave."""
    for layer in task.layers.values():
        harden(layer)
    return _states(task.layers), task.loss()


def _descend(task: UnitTask, settings: Settings, generator: torch.Generator) -> None:
    roundings = [rounding_of(layer) for layer in task.layers.values()]
    weights = sum(rounding.code.numel() for rounding in roundings)
    optimizer = adam(task.layers.values(), settings.code_rate, settings.other_rate)
    rates = [group["lr"] for group in optimizer.param_groups]
    taught = task.taught
    for step in range(settings.steps):
        progress = step / settings.steps
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * cosine(progress)
        pick = taught[torch.randint(len(taught), (settings.batch,), generator=generator)]
        with fast():
            output = task.unit.module(channels_last(task.x[pick].to(device())))
        loss = task.error(output, task.target[pick].to(device())) / task.power
        push = sum((rounding.regulariser(progress) for rounding in roundings), start=loss.new_zeros(()))
        optimizer.zero_grad()
        (loss + settings.regulariser * push / weights).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
