"""The Fisher information of outputs: how much the log-likelihood minds an error there, alone and together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from recon.compute.arithmetic import batches, channels_last, fast, mixed_order
from recon.graph.layers import Layer, keep_outputs
from recon.graph.network import Network
from recon.graph.run import run
from recon.settings import Settings

IMAGES = 256  # that are enough for ours
BATCH = 4  # the outputs of all layers are alive at once
WIDEST = 1280  # inputs of a channel beyond which rounding channels together takes minutes


def fisher_probe(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Σ_n ⟨v_n, logits_n⟩ of logits (N, …, classes), a scalar whose gradients have the Fisher as their second moment.

    v is the gradient e_y − p of log p(y|x) for one label y. With y ~ p, a network that is sure of itself draws its
    rare labels so seldom, and each of them weighs so much, that hundreds of images do not average it out. So y is drawn
    in proportion to p_y ‖e_y − p‖², and v scaled by √(p_y / q_y): it is as long for every label, and E[v vᵀ] is
    diag(p) − p pᵀ as before.
    """
    p = logits.detach().double().softmax(-1).flatten(0, -2)
    square = p.square()
    share = p * ((1 - p).square() + square.sum(-1, keepdim=True) - square).clamp_min(1e-300)
    label = torch.multinomial(share.cpu(), 1, generator=generator).to(p.device)
    direction = torch.zeros_like(p).scatter_(1, label, 1.0) - p
    v = F.normalize(direction, dim=-1) * share.sum(-1, keepdim=True).sqrt()
    return (v.float() * logits.float().flatten(0, -2)).sum()


@dataclass(frozen=True, slots=True)
class Fisher:
    """What the loss minds: by unit its `diagonal` at one output (…), by layer the second moment (O, O) of its gradient
    at the outputs, per position, as `metrics`."""

    diagonal: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    def weight(self, unit: str) -> Tensor | None:
        """The diagonal at the output of a unit, 1 on average, laid out as outputs; None where it was not measured."""
        found = self.diagonal.get(unit)
        return None if found is None else channels_last(found[None])[0] / found.mean().clamp_min(1e-30)


def measure_fisher(network: Network, images: Tensor, settings: Settings) -> Fisher:
    """What `settings` need of the Fisher information of `network` on images (N, C, H, W): the recipes of others get it
    from all of them."""
    if settings.start != "second-order":
        return _measured(network, images, {}, settings.seed)
    return _measured(network, images[mixed_order(images)[:IMAGES]], _metric_layers(network), settings.seed)


def output_metrics(network: Network, images: Tensor, seed: int) -> dict[str, Tensor]:
    """By layer, the second moment (O, O) of ∂ log p(y|x) / ∂z, y ~ p, at one position of its output z, from images
    (N, C, H, W); left out are grouped convolutions, whose channels have inputs of their own, and the widest layers.

    What two halves of the images do not agree on is taken out of what stands beside the diagonal: the share of its
    squares that is the variance of the estimate (Ledoit and Wolf, J. Multivariate Analysis 88, 2004). A classifier has
    a thousand outputs and one position an image.
    """
    return dict(_measured(network, images, _metric_layers(network), seed).metrics)


def fisher_diagonal(network: Network, images: Tensor, seed: int) -> dict[str, Tensor]:
    """E[(∂ log p(y|x) / ∂z)²], y ~ p, at the output z of every unit, shape of one output.

    `images` is (N, C, H, W), normalised for the network. This is the weight of BRECQ's loss (arXiv 2102.05426,
    eq. 10), as a true diagonal Fisher: per-sample gradients of `fisher_probe`, averaged over samples.
    Small independent errors δ of an output add ½ Σ F δ² nats to the divergence.
    """
    return dict(_measured(network, images, {}, seed).diagonal)


def _metric_layers(network: Network) -> dict[str, Layer]:
    layers = {name: network.layer(name) for name in network.table.names}
    layers = {name: layer for name, layer in layers.items() if getattr(layer, "groups", 1) == 1}
    return {name: layer for name, layer in layers.items() if layer.weight[0].numel() <= WIDEST}


def _measured(network: Network, images: Tensor, layers: Mapping[str, Layer], seed: int) -> Fisher:
    """`fisher_diagonal`, and `output_metrics` of `layers`, from one backward pass of images (N, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    diagonal: dict[str, Tensor] = {}
    halves: list[dict[str, Tensor]] = [{}, {}]
    for index, x in enumerate(batches(images, network.device, BATCH)):
        outputs: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor, outputs: dict[str, Tensor] = outputs) -> Tensor:
            outputs[name] = output if output.requires_grad else output.requires_grad_()
            return outputs[name]

        with keep_outputs(layers) as calls, torch.enable_grad(), fast(network.device):
            probe = fisher_probe(run(network, channels_last(x), keep), generator)
        gradients = torch.autograd.grad(probe, [*outputs.values(), *(z for *_, z in calls)])
        for name, gradient in zip(outputs, gradients, strict=False):
            diagonal[name] = diagonal.get(name, 0.0) + gradient.float().square().sum(0) / len(images)
        sums = halves[index % 2]
        for (name, *_), gradient in zip(calls, gradients[len(outputs) :], strict=True):
            rows = (gradient.movedim(1, -1) if gradient.dim() == 4 else gradient).float().flatten(0, -2)
            sums[name] = sums.get(name, 0.0) + rows.T @ rows / len(images)
    return Fisher(diagonal, {name: _believed(one, halves[1].get(name, one)) for name, one in halves[0].items()})


def _believed(one: Tensor, other: Tensor) -> Tensor:
    """The sum of two halves of a second moment (O, O), what stands beside the diagonal shrunk by what they disagree."""
    whole = one + other
    diagonal = torch.diag(whole.diagonal())
    apart = whole - diagonal
    disagreement = one - other
    noise = (disagreement - torch.diag(disagreement.diagonal())).square().sum()
    share = (1 - noise / apart.square().sum().clamp_min(1e-30)).clamp(0, 1)
    return diagonal + share * apart
