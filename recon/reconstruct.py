"""Block reconstruction: learn the rounding of one unit after another, then scale the logits.

Each unit gets the inputs that the already quantized prefix gives and is fitted to the float network's output, weighted
by the Fisher diagonal (BRECQ, arXiv 2102.05426, algorithm 1), from a second-order start.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hwmodel import FLOAT_BITS, BitConfig, InputError
from recon.compute.arithmetic import picked
from recon.compute.store import Store
from recon.fit.checkpoint import Progress
from recon.fit.optimizer import Annealed, weight_parameters
from recon.fit.ranges import fit_ranges
from recon.fit.rate import RateControl, control
from recon.fit.report import BlockReport
from recon.fit.rescale import rescale_logits
from recon.fit.start import nearest_start, second_order_start
from recon.fit.task import UnitTask, held_back, walk
from recon.graph.granularity import regroup
from recon.graph.layers import Layer
from recon.graph.network import Network
from recon.graph.samples import Samples
from recon.likelihood.likelihood import CLASSIFIER, Likelihood
from recon.quantizers.insert import find_ranges, hold_below_caps, input_scale, quantize_inputs, quantizers_of
from recon.quantizers.integer_domain import in_integer_domain
from recon.quantizers.learned import bias_of, decide_rounding, learn_rounding, rounding_of, set_weight
from recon.quantizers.nearest import nearest
from recon.quantizers.quantized import QuantizedLayers, input_bits, stored_layers
from recon.quantizers.rounding import AdaRound, Rounding, StraightThrough
from recon.settings import Settings
from recon.statistics.fisher import Fisher, measure_fisher
from recon.transforms.basis import balanced
from recon.transforms.equalize import equalized

FEWEST_SAMPLES = 2
NEGLIGIBLE = 1e-4  # of the output's power: what 8 bits leave, and not worth a gradient step
EASY, MOST = 0.02, 4  # where the start leaves more of the output's power, steps may grow with it, up to fourfold
FIRST, PARTS = 10, 7  # a first cycle of falling rates has ten steps or a seventh of all; each next one twice as many
MOST_WEIGHTS = 2**25  # of a unit that learns: more take gigabytes, and a few hundred samples teach them nothing
TRIES = 4  # of steps that take the bytes wanted
INPUT_STEPS = 4  # activations learn for a fourth of the steps where they come after the weights (BRECQ's code)

States = dict[str, tuple[Rounding, Tensor, Tensor | None]]


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """The finished layers, and a report per unit."""

    layers: QuantizedLayers
    reports: tuple[BlockReport, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What configurations with the same bits of inputs begin with: the float network in the basis that is rounded, the
    network to round, the same but for equalized inputs, and the Fisher information. None of it is changed."""

    network: Network
    work: Network
    fisher: Fisher


def prepare(
    network: Network, samples: Any, config: BitConfig, settings: Settings, likelihood: Likelihood = CLASSIFIER
) -> Prepared:
    """Prepares `network` for `reconstruct` with the same samples, settings and likelihood, at any configuration with
    the bits of inputs of `config`."""
    leaves, inputs, work = network.leaves(Samples.of(samples)), input_bits(config), network
    if settings.basis == "balanced":
        work, network = equalized(balanced(network), inputs, leaves)
    truth = regroup(network, settings.granularity)
    fisher = measure_fisher(truth, leaves, likelihood, settings) if settings.weighting == "fisher" else Fisher()
    return Prepared(network, work, fisher)


def reconstruct(
    network: Network,
    samples: Any,
    config: BitConfig,
    settings: Settings | None = None,
    *,
    likelihood: Likelihood = CLASSIFIER,
    progress: Progress | None = None,
    coded_bytes: Mapping[str, float] | None = None,
    prepared: Prepared | None = None,
    on_block: Callable[[BlockReport], None] = lambda report: None,
) -> Reconstruction:
    """Finishes `network` at the bits of `config` with calibration samples, as the network takes them; it is not
    changed. `likelihood` says what its outputs mean: by default the logits of one classifier.

    `progress` keeps finished units on disk, so that an interrupted call continues where it was. `coded_bytes` are what
    entropy-coded layers may take together, by name, as the search counted them. `prepared` is what `prepare` made for
    these bits of inputs, where several configurations are finished. `on_block` is called after every unit.
    Raises InputError for too few samples, and where outputs do not fit the likelihood.
    """
    settings = settings or Settings()
    leaves = network.leaves(Samples.of(samples))
    if len(leaves[0]) < FEWEST_SAMPLES:
        raise InputError(f"reconstruction needs at least {FEWEST_SAMPLES} calibration samples, got {len(leaves[0])}")
    with torch.no_grad():
        likelihood.check(network.outputs_of(*picked(leaves, slice(FEWEST_SAMPLES), network.device)))
    inputs = input_bits(config)
    ready = prepared or prepare(network, samples, config, settings, likelihood)
    work = regroup(quantize_inputs(ready.work, inputs), settings.granularity)
    truth, fisher = regroup(ready.network, settings.granularity), ready.fisher
    rate = control(coded_bytes, ((name, work.layer(name)) for name in work.table.names))
    reports: list[BlockReport] = []
    store = Store(settings.memory_bytes, ready.network.device)
    for task in walk(work, truth, leaves, settings, fisher, store):
        report = progress.restore(task.name, task.layers) if progress else None
        if report is None:
            report = _fit_unit(task, config, settings, rate)
            if settings.below_caps:
                hold_below_caps(work.module, task.layers)
            if progress:
                progress.save(report, task.layers)
        elif settings.order == "weights first":
            release_inputs(task.layers.values())
        if rate:
            rate.spend(task.layers)
        reports.append(report)
        on_block(report)
    if settings.order == "weights first" and inputs:
        for task in walk(work, truth, leaves, settings, fisher, store):
            _fit_inputs(task, settings)
    if settings.early_stopping:
        rescale_logits(work, ready.network, [leaf[held_back(len(leaf))] for leaf in leaves], likelihood, store)
    layers = {name: work.layer(name) for name in work.table.names}
    if rate:
        rate.trim(layers)
    return Reconstruction(stored_layers(layers), tuple(reports))


def _fit_unit(task: UnitTask, config: BitConfig, settings: Settings, rate: RateControl | None) -> BlockReport:
    """Roundings on the layers of the unit, steps of entropy-coded ones by `rate`, where there is one. Early stopping
    keeps the candidate with the lowest held-out loss: of plain rounding, the start, and every cycle of descent."""
    started = time.perf_counter()
    bits = tuple(config[name].stored for name in task.layers)
    floats = {name: layer.weight.detach().clone() for name, layer in task.layers.items()}
    if settings.order == "joint":
        fit_ranges(task)
    for name, layer in task.layers.items():
        stored = nearest(layer.weight, config[name], config[name].w in settings.symmetric)
        learn_rounding(layer, StraightThrough(stored.codes.float(), stored.grid))
    before, plain = task.loss(), _states(task.layers)
    if settings.early_stopping and before < NEGLIGIBLE:
        return BlockReport(task.name, bits, before, before, 0, time.perf_counter() - started, "enough")

    widened: dict[str, float] | None = rate.widened() if rate else {}
    for _ in range(TRIES):  # after the first with steps that take the bytes wanted
        for name, layer in task.layers.items():
            set_weight(layer, floats[name])
            bias_of(layer).data = plain[name][1].clone()
        if settings.start == "second-order":
            second_order_start(task, config, settings, widened)
        else:
            nearest_start(task, config, settings)
        widened = rate.corrected(task.layers, widened or {}) if rate else None
        if widened is None:
            break
    fixed = all(config[name].rate and config[name].a == FLOAT_BITS for name in task.layers)  # but for biases
    fixed |= settings.early_stopping and sum(weight.numel() for weight in floats.values()) > MOST_WEIGHTS
    state = {} if fixed else _states(task.layers)
    learned, after = _decided(task)
    most = 0 if fixed else settings.steps
    if settings.early_stopping and most:  # nothing can be learned from a start that is no number
        most = 0 if math.isnan(after) else round(settings.steps * min(max(after / EASY, 1), MOST))
    # AdaRound decides at the end of all steps.
    by_cycles = settings.early_stopping and settings.rounding == "straight-through"
    steps, cycle = 0, max(FIRST, most // PARTS) if by_cycles else most
    while steps < most:
        cycle = min(cycle, most - steps)
        _put(task.layers, state)
        gradient_steps(task, settings, cycle)
        state = _states(task.layers)
        descended, loss = _decided(task)
        steps, cycle = steps + cycle, 2 * cycle
        if settings.early_stopping and not loss < after:  # nor if it is no number
            break
        learned, after = descended, loss
    outcome: Literal["reconstructed", "nearest"] = "reconstructed"
    if settings.early_stopping and not after <= before:
        learned, after, outcome = plain, before, "nearest"
    _put(task.layers, learned)
    return BlockReport(task.name, bits, before, after, steps, time.perf_counter() - started, outcome)


def _states(layers: dict[str, Layer]) -> States:
    """Copies of what the layers have learned."""
    return {
        name: (copy.deepcopy(rounding_of(layer)), bias_of(layer).detach().clone(), input_scale(layer))
        for name, layer in layers.items()
    }


def _put(layers: dict[str, Layer], states: States) -> None:
    for name, (rounding, bias, scale) in states.items():
        learn_rounding(layers[name], rounding)
        bias_of(layers[name]).data = bias
        if scale is not None:
            quantizers_of([layers[name]])[0].log_scale.data = scale


def _decided(task: UnitTask) -> tuple[States, float]:
    """The states of the unit with every rounding decided, and the loss they leave."""
    for layer in task.layers.values():
        decide_rounding(layer)
    return _states(task.layers), task.loss()


@torch.enable_grad()
def gradient_steps(task: UnitTask, settings: Settings, steps: int) -> None:
    """`steps` gradient steps on the roundings, scales and biases of the unit, and on the step sizes of its inputs where
    they are quantized already, some of their channels left out in every step."""
    layers = list(task.layers.values())
    pushed = [rounding for rounding in map(rounding_of, layers) if isinstance(rounding, AdaRound)]
    # Errors are relative to the power of the output; BRECQ sums them over its channels.
    weight = settings.regulariser / (task.power * task.targets[0].shape[1])
    parameters = weight_parameters(layers, settings.code_rate, settings.other_rate)
    quantizers = quantizers_of(layers) if settings.order == "joint" else []
    optimizer = Annealed([*parameters, ([quantizer.log_scale for quantizer in quantizers], settings.input_rate)])
    for quantizer in quantizers:
        quantizer.leave_unquantized(settings.dropped, task.generator)
    module = in_integer_domain(task.module, task.layers)
    for step in range(steps):
        progress, loss = step / steps, task.error(task.draw(settings.batch), module)
        for rounding in pushed:
            loss = loss + weight * rounding.regulariser(progress)
        optimizer.step(loss, progress)
    for quantizer in quantizers:
        quantizer.leave_unquantized(0.0)


def release_inputs(layers: Iterable[Layer]) -> None:
    """Lets what layers read pass unquantized: a unit that is restored from disk brings quantizers with a step size, of
    which there is none before all weights are fitted."""
    for quantizer in quantizers_of(layers):
        quantizer.leave_unquantized(1.0)


@torch.enable_grad()
def _fit_inputs(task: UnitTask, settings: Settings) -> None:
    """The ranges of the unit's inputs, then gradient steps on their step sizes alone."""
    find_ranges(task.module, task.layers, task.x)
    quantizers = quantizers_of(task.layers.values())
    task.module.requires_grad_(False)
    optimizer = Annealed([([quantizer.log_scale for quantizer in quantizers], settings.input_rate)])
    steps = settings.steps // INPUT_STEPS if quantizers else 0
    for step in range(steps):
        optimizer.step(task.error(task.draw(settings.batch)), step / steps)
