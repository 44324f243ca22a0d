"""The diagonal Fisher information of unit outputs: how much the log-likelihood minds an error there."""

from __future__ import annotations

import torch
from torch import Tensor

from recon.compute import batches, channels_last, fast
from recon.network import Network
from recon.run import run

FISHER_BATCH = 32


def sampled_log_likelihood(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Σ_n log p(y_n|x_n) of logits (N, classes), with each y_n drawn from the model's own softmax: the true Fisher."""
    log_p = logits.float().log_softmax(-1).flatten(0, -2)
    labels = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).to(log_p.device)
    return log_p.gather(1, labels).sum()


def fisher_diagonal(network: Network, images: Tensor, seed: int) -> dict[str, Tensor]:
    """E[(∂ log p(y|x) / ∂z)²] at the output z of every unit, shape of one output.

    `images` is (N, C, H, W), normalised for the network. This is the weight of BRECQ's loss (arXiv 2102.05426,
    eq. 10), as a true diagonal Fisher: per-sample gradients, labels drawn from the float model, averaged over samples.
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
            likelihood = sampled_log_likelihood(logits, generator)
        gradients = torch.autograd.grad(likelihood, list(outputs.values()))
        for name, gradient in zip(outputs, gradients, strict=True):
            square = gradient.float().square().sum(0)
            sums[name] = sums[name] + square if name in sums else square
    return {name: total / len(images) for name, total in sums.items()}
