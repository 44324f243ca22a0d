"""The sensitivity cache: what each choice of bits costs in expected KL, alone and together with every other choice.

With g = ∂log p(y|x)/∂z_l at the output of layer l, labels y drawn from the float model, and Δz the output error of
layer l at precision c, one number per sample, s_{l,c} = ⟨g, Δz⟩, is the first-order change of the log-likelihood. The
Fisher information is the Hessian of the KL divergence, so a configuration is expected to cost ½ E[(Σ_l s_{l,c_l})²]
nats: all intra- and inter-layer terms from one backward pass and one local convolution per layer and choice.

Beside them stands the diagonal Fisher's intra-layer term, ½ E[Σ_i g_i² Δz_i²] (BRECQ, arXiv 2102.05426, eq. 10). It
ignores that a layer's output errors act together, and so judges most layers of a real network 2 to 40 times too low.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hwmodel import Precision
from mpsearch.sensitivity_table import SensitivityTable
from recon.compute import batches, channels_last, device, fast
from recon.fisher import sampled_log_likelihood
from recon.moments import gather_moments
from recon.network import Network
from recon.start import second_order_rounding

SENSITIVITY_BATCH = 16
METRIC = "fisher"
# Inter-layer terms are means of products with either sign, noisy with a few hundred samples, and a search finds the
# pairs that seem to cancel: they are shrunk. On the real MobileNetV2 at 1.5 MB Kendall's tau between prediction and
# measured KL is 0.83 without them, 0.91 at one half and 0.77 in full (benchmarks/bench_fidelity.py).
SHRINKAGE = 0.5

Layer = nn.Conv2d | nn.Linear
Errors = list[Tensor]


def measure(
    network: Network,
    images: Tensor,
    precisions: Sequence[Precision],
    seed: int,
    fingerprint: str,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> SensitivityTable:
    """The sensitivity of every layer at every weight precision on images (N, C, H, W), normalised for the network.

    Weights are rounded by `second_order_rounding`, the mean output error taken out by the bias: closer to what
    finalization leaves than plain rounding, which overrates low bits. `on_batch` is called with images done and in all.
    """
    names = network.table.names
    errors = weight_errors(network, images, precisions)
    generator = torch.Generator().manual_seed(seed)
    choices = len(precisions)
    diagonal = np.zeros((len(names), choices))
    scores: list[Tensor] = []
    for x in batches(images, SENSITIVITY_BATCH):
        squares, score = _batch_terms(network, channels_last(x), errors, generator)
        diagonal += squares.double().cpu().numpy()
        scores.append(score.double().cpu())
        on_batch(sum(len(s) for s in scores), len(images))
    s = torch.cat(scores).flatten(1).numpy()
    half = 0.5 * s.T @ s / len(images)
    own = np.kron(np.eye(len(names)), np.ones((choices, choices))).astype(bool)
    inter = np.where(own, 0.0, SHRINKAGE * half)
    return SensitivityTable(
        names,
        tuple(precisions),
        half.diagonal().reshape(len(names), choices),
        0.5 * (inter + inter.T),
        0.5 * diagonal / len(images),
        samples=len(images),
        seed=seed,
        metric=METRIC,
        fingerprint=fingerprint,
    )


def weight_errors(network: Network, images: Tensor, precisions: Sequence[Precision]) -> dict[str, Errors]:
    """Per layer and precision the stacked weight error Q(W) − W (O, …), then the bias that takes out its mean (O,).

    The list of a layer holds, per precision, the two tensors one after the other.
    """
    layers = {name: network.layer(name) for name in network.table.names}
    moments = gather_moments(network.model, layers, images)
    errors: dict[str, Errors] = {}
    for name, layer in layers.items():
        errors[name] = []
        for precision in precisions:
            *_, error, bias = second_order_rounding(layer.weight.detach(), precision.w, moments, name)
            errors[name] += [error, bias]
    return errors


def _batch_terms(
    network: Network, x: Tensor, errors: dict[str, Errors], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Σ_n Σ_i g² Δz² (L, C) and ⟨g, Δz⟩ (n, L, C) for a batch x (n, …)."""
    calls: list[tuple[str, Layer, Tensor, Tensor]] = []

    def keep(name: str, layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> Tensor:
            z = z if z.requires_grad else z.requires_grad_()
            calls.append((name, layer, args[0].detach(), z))
            return z

        return hook

    layers = {name: network.layer(name) for name in errors}
    hooks = [layer.register_forward_hook(keep(name, layer)) for name, layer in layers.items()]
    try:
        with torch.enable_grad(), fast():
            likelihood = sampled_log_likelihood(network.model(x), generator)
    finally:
        for hook in hooks:
            hook.remove()
    gradients = torch.autograd.grad(likelihood, [z for *_, z in calls])
    choices = len(next(iter(errors.values()))) // 2
    index = {name: position for position, name in enumerate(errors)}
    diagonal = torch.zeros(len(errors), choices, device=device())
    score = torch.zeros(len(x), len(errors), choices, device=device())
    with torch.no_grad(), fast():
        for (name, layer, inputs, _), gradient in zip(calls, gradients, strict=True):
            g = gradient.float()
            for choice in range(choices):
                error, bias = errors[name][2 * choice : 2 * choice + 2]
                product = g * apply_weight(layer, inputs, error, bias).float()
                score[:, index[name], choice] += product.flatten(1).sum(1)
                diagonal[index[name], choice] += product.square().sum()
    return diagonal, score


def apply_weight(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `layer` would give for inputs x with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    output: Tensor = layer._conv_forward(x, weight, bias)
    return output
