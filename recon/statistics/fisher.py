"""The Fisher information of outputs: how much the log-likelihood minds an error there, alone and together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recon.compute.arithmetic import channels_last, fast, mixed_order, picked, slices
from recon.graph.gradients import without_gradient
from recon.graph.layers import Embedding, Layer, keep_outputs, rows
from recon.graph.network import Network
from recon.graph.unit_by_unit import run_units
from recon.graph.units import Unit
from recon.likelihood.likelihood import Likelihood
from recon.settings import Settings
from recon.statistics.moments import some_positions

SAMPLES = 256  # that are enough for ours
POSITIONS = 64  # of a map, that are enough to know how its channels act together
BATCH = 4  # the outputs of all layers are alive at once
WIDEST = 1280  # inputs of a channel beyond which rounding channels together takes minutes


@dataclass(frozen=True, slots=True)
class Fisher:
    """What the loss minds: by unit its `diagonal` at one sample of every tensor that it writes (…), by layer the second
    moment (O, O) of its gradient at the outputs, summed over its positions, as `metrics`."""

    diagonal: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    def weights(self, unit: str) -> tuple[Tensor, ...] | None:
        """The diagonals at the outputs of a unit, 1 on average over all of them, laid out as outputs; None where they
        were not measured, or nothing depends on the unit."""
        found = self.diagonal.get(unit)
        if found is None:
            return None
        mean = sum(float(part.sum()) for part in found) / sum(part.numel() for part in found)
        return tuple(channels_last(part[None])[0] / mean for part in found) if mean > 0 else None


def measure_fisher(network: Network, leaves: Sequence[Tensor], likelihood: Likelihood, settings: Settings) -> Fisher:
    """What `settings` need of the Fisher information of `network` on samples, whose tensors are (N, …): the recipes of
    others get it from all of them."""
    if settings.start != "second-order":
        return _measured(network, leaves, likelihood, {}, settings.seed)
    some = [leaf[mixed_order(leaf)[:SAMPLES]] for leaf in leaves]
    return _measured(network, some, likelihood, _metric_layers(network), settings.seed)


def output_metrics(network: Network, leaves: Sequence[Tensor], likelihood: Likelihood, seed: int) -> dict[str, Tensor]:
    """By layer, the second moment (O, O) of ∂ log p(y|x) / ∂z, y ~ p, summed over the positions of its output z (by
    some of them), from samples, whose tensors are (N, …); left out are grouped convolutions, whose channels have inputs
    of their own, the widest layers, and those whose effect no gradient shows.

    What two halves of the samples do not agree on is taken out of what stands beside the diagonal: the share of its
    squares that is the variance of the estimate (Ledoit and Wolf, J. Multivariate Analysis 88, 2004). A classifier has
    a thousand outputs and one position a sample.
    """
    return dict(_measured(network, leaves, likelihood, _metric_layers(network), seed).metrics)


def fisher_diagonal(
    network: Network, leaves: Sequence[Tensor], likelihood: Likelihood, seed: int
) -> dict[str, tuple[Tensor, ...]]:
    """E[(∂ log p(y|x) / ∂z)²], y ~ p, at every tensor z that a unit writes, shape of one sample.

    This is the weight of BRECQ's loss (arXiv 2102.05426, eq. 10), as a true diagonal Fisher: per-sample gradients of
    `Likelihood.probe`, averaged over samples. Small independent errors δ of an output add ½ Σ F δ² nats to the
    divergence.
    """
    return dict(_measured(network, leaves, likelihood, {}, seed).diagonal)


def _metric_layers(network: Network) -> dict[str, Layer]:
    hidden = without_gradient(network.module)
    layers = {name: network.layer(name) for name in network.table.names if name not in hidden}
    layers = {name: layer for name, layer in layers.items() if layer.groups == 1 and not isinstance(layer, Embedding)}
    return {name: layer for name, layer in layers.items() if layer.weight[0].numel() <= WIDEST}


def _measured(
    network: Network, leaves: Sequence[Tensor], likelihood: Likelihood, layers: Mapping[str, Layer], seed: int
) -> Fisher:
    """`fisher_diagonal`, and `output_metrics` of `layers`, from one backward pass."""
    generator, places = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    count = len(leaves[0])
    diagonal: dict[tuple[str, int], Tensor] = {}
    halves: list[dict[str, Tensor]] = [{}, {}]
    for index, part in enumerate(slices(count, BATCH)):
        outputs: dict[tuple[str, int], Tensor] = {}

        def keep(
            unit: Unit, values: tuple[Tensor, ...], outputs: dict[tuple[str, int], Tensor] = outputs
        ) -> tuple[Tensor, ...]:
            kept = tuple(z if z.requires_grad or not z.is_floating_point() else z.requires_grad_() for z in values)
            outputs |= {(unit.name, at): z for at, z in enumerate(kept) if z.is_floating_point()}
            return kept

        with keep_outputs(layers) as calls, torch.enable_grad(), fast(network.device):
            probe = likelihood.probe(run_units(network, picked(leaves, part, network.device), keep), generator)
        wanted = [*outputs.values(), *(z for *_, z in calls)]
        gradients = torch.autograd.grad(probe, wanted, allow_unused=True)
        for key, gradient in zip(outputs, gradients, strict=False):
            gradient = torch.zeros_like(outputs[key]) if gradient is None else gradient
            diagonal[key] = diagonal.get(key, 0.0) + gradient.float().square().sum(0) / count
        sums = halves[index % 2]
        for (name, *_), gradient in zip(calls, gradients[len(outputs) :], strict=True):
            if gradient is not None:
                layer = layers[name]
                positions = some_positions(layer, gradient, places, POSITIONS)
                by_position = rows(gradient, layer.channel_axis, positions).float()
                share = len(by_position) / (len(gradient) * layer.positions_of(gradient))
                sums[name] = sums.get(name, 0.0) + by_position.T @ by_position / (count * share)
    written = {name: tuple(diagonal[key] for key in diagonal if key[0] == name) for name, _ in diagonal}
    return Fisher(written, {name: _believed(one, halves[1].get(name, one)) for name, one in halves[0].items()})


def _believed(one: Tensor, other: Tensor) -> Tensor:
    """The sum of two halves of a second moment (O, O), what stands beside the diagonal shrunk by what they disagree."""
    whole = one + other
    diagonal = torch.diag(whole.diagonal())
    apart = whole - diagonal
    disagreement = one - other
    noise = (disagreement - torch.diag(disagreement.diagonal())).square().sum()
    share = (1 - noise / apart.square().sum().clamp_min(1e-30)).clamp(0, 1)
    return diagonal + share * apart
