"""The float network on some calibration samples: what its outputs look like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from hwmodel.errors import InputError
from mpsearch.sources.split import Split
from recon.graph.network import Network
from recon.graph.samples import named_parts
from recon.likelihood.likelihood import Likelihood

MOST, BATCH = 128, 16
DRAWS = 8
MOST_BYTES = 2**28  # of outputs, where those of a batch are large


def example_outputs(network: Network, split: Split) -> Any:
    """The network's outputs, as the model gives them, on the first samples of a split, in main memory."""
    rows: list[tuple[Tensor, ...]] = []
    size = 0
    for samples, _ in split.batches(BATCH):
        with torch.no_grad():
            leaves = network.module(*network.leaves(samples.to(network.device)))
        rows.append(tuple(leaf.cpu() for leaf in leaves))
        size += sum(leaf.numel() * leaf.element_size() for leaf in leaves)
        if len(rows) * BATCH >= MOST or size >= MOST_BYTES:
            break
    joined = [torch.cat(parts) if parts[0].dim() else parts[0] for parts in zip(*rows, strict=True)]
    return tree_unflatten(joined, network.outputs)


def require_finite(likelihood: Likelihood, outputs: Any) -> None:
    """Raises InputError where a head has NaN or infinite outputs (N, …); a class that is ruled out may have −∞."""
    parts = named_parts(outputs)
    broken = ~torch.isfinite(likelihood.divergence(parts, parts))
    if broken.any():
        raise InputError(
            f"the network must give finite outputs, but {int(broken.sum())} of {len(broken)} calibration samples have "
            f"NaN or infinite ones (first: sample {int(broken.int().argmax())}); check its weights and inputs"
        )


def is_random(network: Network, split: Split) -> bool:
    """Whether the network gives other outputs when it sees the same samples again: `DRAWS` times, as two draws may be
    much alike."""
    samples = next(split.batches(2))[0].to(network.device)
    with torch.no_grad():
        tensors = zip(*(network.module(*network.leaves(samples)) for _ in range(DRAWS)), strict=True)
    pairs = ((first, again) for first, *others in tensors for again in others)
    return any(_differ(first.double().nan_to_num(), again.double().nan_to_num()) for first, again in pairs)


def _differ(once: Tensor, again: Tensor) -> bool:
    """By more than what the order of sums on a GPU changes."""
    return float((once - again).abs().max()) > 1e-4 * float(once.abs().max())
