"""The diagonal Fisher information of unit outputs: how much the log-likelihood minds an error there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recon.compute import batches, channels_last, fast
from recon.network import Network
from recon.run import run

FISHER_BATCH = 32


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


def fisher_diagonal(network: Network, images: Tensor, seed: int) -> dict[str, Tensor]:
    """E[(∂ log p(y|x) / ∂z)²], y ~ p, at the output z of every unit, shape of one output.

    `images` is (N, C, H, W), normalised for the network. This is the weight of BRECQ's loss (arXiv 2102.05426,
    eq. 10), as a true diagonal Fisher: per-sample gradients of `fisher_probe`, averaged over samples.
    Small independent errors δ of an output add ½ Σ F δ² nats to the divergence.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    for x in batches(images, FISHER_BATCH):
        outputs: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor, outputs: dict[str, Tensor] = outputs) -> Tensor:
            outputs[name] = output if output.requires_grad else output.requires_grad_()
            return outputs[name]

        with torch.enable_grad(), fast():
            logits = run(network, channels_last(x), keep)
            probe = fisher_probe(logits, generator)
        gradients = torch.autograd.grad(probe, list(outputs.values()))
        for name, gradient in zip(outputs, gradients, strict=True):
            square = gradient.float().square().sum(0)
            sums[name] = sums[name] + square if name in sums else square
    return {name: total / len(images) for name, total in sums.items()}
