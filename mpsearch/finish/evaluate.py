"""How good a model is on images: accuracy against the labels, divergence from the float model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwmodel.errors import InputError
from mpsearch.sources.split import Split
from recon.compute.arithmetic import device_of


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` measured on `count` images.

    `top1` is in percent, None without labels. `kl_nats` is the mean over images of KL(reference ‖ model), None without
    a reference.
    """

    top1: float | None
    kl_nats: float | None
    count: int


def logits(model: Callable[..., Tensor], images: Split, batch: int = 64) -> Tensor:
    """Logits (N, classes) float32 in main memory, in the images' order, of a model in eval mode on any device."""
    device = device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
    parts = []
    with torch.inference_mode():
        for samples, _ in images.batches(batch):
            args, kwargs = samples.to(device).call
            parts.append(model(*args, **kwargs).float().cpu())
    return torch.cat(parts)  # outside inference mode, so that autograd may use them


def evaluate(
    model: Callable[..., Tensor],
    images: Split,
    reference_logits: Tensor | None = None,
    batch: int = 64,
) -> Evaluation:
    """Top-1 accuracy where the images have labels, divergence where there are reference logits (N, classes).

    Raises InputError where the model gives NaN or infinite logits.
    """
    return score(logits(model, images, batch), images.targets, reference_logits)


def score(outputs: Tensor, labels: Tensor | None, reference_logits: Tensor | None = None) -> Evaluation:
    """`evaluate` on logits (N, classes) that are there already. Raises InputError where one is NaN or infinite."""
    broken = ~torch.isfinite(outputs).all(dim=1)
    if broken.any():
        raise InputError(
            f"the model must give finite logits, but {int(broken.sum())} of {len(outputs)} images have NaN or infinite "
            f"ones (first: image {int(broken.int().argmax())}); check its weights and normalisation"
        )
    top1 = None if labels is None else 100.0 * int((outputs.argmax(dim=1) == labels).sum()) / len(outputs)
    kl_nats = None
    if reference_logits is not None:
        log_p, log_q = (F.log_softmax(z.double(), dim=1) for z in (reference_logits, outputs))
        kl_nats = float(F.kl_div(log_q, log_p, reduction="batchmean", log_target=True))
    return Evaluation(top1, kl_nats, len(outputs))
