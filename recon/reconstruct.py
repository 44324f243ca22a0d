"""Block reconstruction: learn the rounding of one unit after another, then polish the whole network.

Each unit is fitted to the float unit's output, weighted by the Fisher diagonal, from the inputs that the already
quantized prefix gives (BRECQ, arXiv 2102.05426, algorithm 1).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hwmodel import BitConfig, InputError
from recon.attach import Layer, adam, attach, bias_of, harden, rounding_of, stored_weight
from recon.checkpoint import Progress
from recon.compute import batches, channels_last, device, fast, map_batches
from recon.fisher import fisher_diagonal
from recon.moments import MOMENT_IMAGES, InputMoments
from recon.network import Network, Unit
from recon.polish import polish
from recon.quantizer import QuantizedWeight, nearest, search_grid
from recon.report import BlockReport
from recon.rounding import RoundingName, StraightThrough, cosine, make_rounding
from recon.run import unit_inputs

FEWEST_IMAGES = 2
NEGLIGIBLE = 1e-4  # of the output's power: what 8 bits leave, and not worth a gradient step


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reconstruct. `steps` are per unit, `polish_steps` for the whole network at the end; rates are Adam's.

    `regulariser` weighs AdaRound's push to integers (0.1 for MobileNetV2-like networks, 0.01 for ResNets); the
    straight-through rounding does not use it.
    """

    steps: int = 200
    polish_steps: int = 300
    batch: int = 32
    seed: int = 0
    rounding: RoundingName = "straight-through"
    weighting: Literal["fisher", "mse"] = "fisher"
    code_rate: float = 0.01
    scale_rate: float = 0.001
    bias_rate: float = 0.001
    polish_factor: float = 0.03
    regulariser: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.polish_steps < 0:
            raise InputError(
                f"expected at least 1 step and 1 image a batch, got {self.steps} steps, batch {self.batch}, "
                f"{self.polish_steps} polish steps"
            )


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
    float_x = quantized_x = images
    for index, (unit, float_unit) in enumerate(zip(work.units, network.units, strict=True)):
        if not network.chained:
            float_x, quantized_x = unit_inputs(network, float_unit, images), unit_inputs(work, unit, images)
        target = map_batches(float_unit.module, float_x)
        layers = {name: work.layer(name) for name in unit.layers}
        report = progress.restore(unit.name, layers) if progress else None
        if report is None:
            task = UnitTask(unit, layers, quantized_x, target, fisher.get(unit.name))
            report = _fit_unit(task, config, settings, torch.Generator().manual_seed(settings.seed * 1009 + index))
            if progress:
                progress.save(report, layers)
        reports.append(report)
        on_block(report)
        if network.chained:
            quantized_x, float_x = map_batches(unit.module, quantized_x), target
    if settings.polish_steps:
        polish(work, network, images, settings, on_polish)
    layers = {name: work.layer(name) for name in work.table.names}
    stored = {name: stored_weight(layer) for name, layer in layers.items()}
    biases = {name: to_half(bias_of(layer), name) for name, layer in layers.items()}
    return Reconstruction(stored, biases, tuple(reports))


@dataclass(frozen=True, slots=True)
class UnitTask:
    """One unit to fit: its layers, quantized-prefix inputs x (N, …), float outputs (N, …), Fisher weight (…)."""

    unit: Unit
    layers: dict[str, Layer]
    x: Tensor
    target: Tensor
    weight: Tensor | None

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean (weighted) squared error of a batch of outputs."""
        squared = (output.float() - target.float()).square()
        return (squared if self.weight is None else squared * self.weight).mean()

    @torch.no_grad()
    def loss(self) -> float:
        """The error over all images, for the weights that the layers have now."""
        total = 0.0
        with fast():
            for x, target in zip(batches(self.x), batches(self.target), strict=True):
                total += float(self.error(self.unit.module(x), target)) * len(x)
        return total / len(self.x)

    @torch.no_grad()
    def power(self) -> float:
        """The same for an output of zero: what errors are measured against."""
        total = sum(float(self.error(torch.zeros_like(t), t)) * len(t) for t in batches(self.target))
        return max(total / len(self.target), 1e-30)


def _fit_unit(task: UnitTask, config: BitConfig, settings: Settings, generator: torch.Generator) -> BlockReport:
    started = time.perf_counter()
    bits = tuple(config[name].w for name in task.layers)
    power = task.power()
    floats = {name: layer.weight.detach().clone() for name, layer in task.layers.items()}
    biases = {name: bias_of(layer).detach().clone() for name, layer in task.layers.items()}
    with InputMoments(task.layers) as moments:
        map_batches(task.unit.module, task.x[:MOMENT_IMAGES])

    plain = {name: nearest(weight, config[name].w) for name, weight in floats.items()}
    for name, layer in task.layers.items():
        layer.weight.data = channels_last(plain[name].dequantize())
    before = task.loss() / power

    if before < NEGLIGIBLE:
        for name, layer in task.layers.items():
            attach(layer, StraightThrough(plain[name].dequantize(), plain[name].grid))
        return BlockReport(task.unit.name, bits, before, before, 0, time.perf_counter() - started, "enough")

    for name, layer in task.layers.items():
        power_in = moments.moment(name).diagonal(dim1=1, dim2=2)
        importance = power_in.repeat_interleave(layer.weight.shape[0] // power_in.shape[0], 0)
        grid = search_grid(floats[name], config[name].w, importance)
        attach(layer, make_rounding(settings.rounding, floats[name], grid))
    _descend(task, settings, generator)
    for layer in task.layers.values():
        harden(layer)
    after = task.loss() / power
    outcome: Literal["reconstructed", "nearest"] = "reconstructed"
    if not after <= before:
        outcome, after = "nearest", before
        for name, layer in task.layers.items():
            bias_of(layer).data = biases[name]
            attach(layer, StraightThrough(plain[name].dequantize(), plain[name].grid))
    return BlockReport(task.unit.name, bits, before, after, settings.steps, time.perf_counter() - started, outcome)


def _descend(task: UnitTask, settings: Settings, generator: torch.Generator) -> None:
    roundings = [rounding_of(layer) for layer in task.layers.values()]
    weights = sum(rounding.code.numel() for rounding in roundings)
    power = task.power()
    optimizer = adam(task.layers, settings)
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(settings.steps):
        progress = step / settings.steps
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * cosine(progress)
        pick = torch.randint(len(task.x), (settings.batch,), generator=generator)
        with fast():
            output = task.unit.module(channels_last(task.x[pick]).to(device()))
        loss = task.error(output, task.target[pick].to(device())) / power
        push = sum((rounding.regulariser(progress) for rounding in roundings), start=loss.new_zeros(()))
        optimizer.zero_grad()
        (loss + settings.regulariser * push / weights).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
