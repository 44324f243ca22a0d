"""The sensitivity cache: what each choice of bits costs in expected KL, alone and together with every other choice.

With g = ∂log p(y|x)/∂z_l at the output of layer l, labels y drawn from the float model, and Δz the output error of
layer l at precision c, one number per sample, s_{l,c} = ⟨g, Δz⟩, is the first-order change of the log-likelihood. The
Fisher information is the Hessian of the KL divergence, so a configuration is expected to cost ½ E[(Σ_l s_{l,c_l})²]
nats: all intra- and inter-layer terms from one backward pass and one local convolution per layer and weight width.
Quantized inputs add ⟨∂log p/∂x, Q(x) − x⟩, shared among the layers that read the tensor x.

Beside them stands the diagonal Fisher's intra-layer term, ½ E[Σ_i g_i² Δz_i²] (BRECQ, arXiv 2102.05426, eq. 10). It
ignores that a layer's output errors act together, and so judges most layers of a real network 2 to 40 times too low.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hwmodel import FLOAT_BITS, Precision
from mpsearch.sensitivity_table import SensitivityTable
from recon.compute import batches, channels_last, device, fast
from recon.fisher import fisher_probe
from recon.input_quantizer import InputGrid, round_to_grid
from recon.inputs import input_histograms
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
Errors = list[tuple[Tensor, Tensor]]


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
    grids = input_grids(network, images, precisions)
    generator = torch.Generator().manual_seed(seed)
    choices = len(precisions)
    diagonal = np.zeros((len(names), choices))
    scores: list[Tensor] = []
    for x in batches(images, SENSITIVITY_BATCH):
        squares, score = _batch_terms(network, channels_last(x), errors, grids, generator)
        diagonal += _by_precision(squares, precisions).double().cpu().numpy()
        scores.append(_by_precision(score, precisions).double().cpu())
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
    """Per layer and weight width (`weight_widths`) the weight error Q(W) − W (O, …), and the bias that takes out its
    mean (O,)."""
    layers = {name: network.layer(name) for name in network.table.names}
    moments = gather_moments(network.model, layers, images)
    errors: dict[str, Errors] = {}
    for name, layer in layers.items():
        roundings = (
            second_order_rounding(layer.weight.detach(), bits, moments, name) for bits in weight_widths(precisions)
        )
        errors[name] = [(error, bias) for _, _, error, bias in roundings]
    return errors


def input_grids(network: Network, images: Tensor, precisions: Sequence[Precision]) -> dict[str, list[InputGrid]]:
    """Per layer and activation width (`input_widths`) the grid that suits its inputs for images (N, C, H, W) best."""
    layers = {name: network.layer(name) for name in network.table.names}
    widths = input_widths(precisions)
    seen = input_histograms(network.model, layers, images) if widths else {}
    return {name: [seen[name].grid(bits) for bits in widths] for name in layers}


def weight_widths(precisions: Sequence[Precision]) -> list[int]:
    """Different weight bits, ascending."""
    return sorted({precision.w for precision in precisions})


def input_widths(precisions: Sequence[Precision]) -> list[int]:
    """Different activation bits, ascending, without float."""
    return sorted({precision.a for precision in precisions} - {FLOAT_BITS})


def _by_precision(terms: Tensor, precisions: Sequence[Precision]) -> Tensor:
    """Terms (…, W + A) of weight and activation widths as terms (…, C) of precisions."""
    widths, inputs = weight_widths(precisions), input_widths(precisions)
    result = terms[..., [widths.index(precision.w) for precision in precisions]]
    for choice, precision in enumerate(precisions):
        if precision.a != FLOAT_BITS:
            result[..., choice] += terms[..., len(widths) + inputs.index(precision.a)]
    return result


def _batch_terms(
    network: Network,
    x: Tensor,
    errors: dict[str, Errors],
    grids: dict[str, list[InputGrid]],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Σ_n Σ_i g² Δ² (L, W + A) and ⟨g, Δ⟩ (n, L, W + A) for a batch x (n, …): Δ is the error of a layer's output for W
    weight widths, then that of its input for A activation widths."""
    calls: list[tuple[str, Layer, Tensor, Tensor]] = []
    needs_inputs = any(grids.values())

    def keep(name: str, layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> Tensor:
            z = z if z.requires_grad else z.requires_grad_()
            calls.append((name, layer, args[0], z))
            return z

        return hook

    layers = {name: network.layer(name) for name in errors}
    hooks = [layer.register_forward_hook(keep(name, layer)) for name, layer in layers.items()]
    try:
        with torch.enable_grad(), fast():
            probe = fisher_probe(network.model(x.requires_grad_(needs_inputs)), generator)
    finally:
        for hook in hooks:
            hook.remove()
    read = {id(inputs): inputs for _, _, inputs, _ in calls} if needs_inputs else {}
    gradients = torch.autograd.grad(probe, [z for *_, z in calls] + list(read.values()))
    input_gradients = dict(zip(read, gradients[len(calls) :], strict=True))
    readers = Counter(id(inputs) for _, _, inputs, _ in calls)
    index = {name: position for position, name in enumerate(errors)}
    widths = len(next(iter(errors.values())))
    terms = widths + len(next(iter(grids.values())))
    diagonal = torch.zeros(len(errors), terms, device=device())
    score = torch.zeros(len(x), len(errors), terms, device=device())

    def add(name: str, term: int, product: Tensor) -> None:
        score[:, index[name], term] += product.flatten(1).sum(1)
        diagonal[index[name], term] += product.square().sum()

    with torch.no_grad(), fast():
        for (name, layer, inputs, _), gradient in zip(calls, gradients, strict=False):
            for term, (error, bias) in enumerate(errors[name]):
                add(name, term, gradient.float() * apply_weight(layer, inputs, error, bias).float())
            for term, grid in enumerate(grids[name]):
                exact = inputs.float()
                share = input_gradients[id(inputs)].float() / readers[id(inputs)]
                add(name, widths + term, share * (round_to_grid(exact, grid) - exact))
    return diagonal, score


def apply_weight(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `layer` would give for inputs x with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    output: Tensor = layer._conv_forward(x, weight, bias)
    return output
