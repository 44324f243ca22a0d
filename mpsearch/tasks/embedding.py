"""Embeddings: vectors that are compared by their angle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hwmodel.errors import InputError
from mpsearch.tasks.metric import Metric, mean_metric
from mpsearch.tasks.parts import find_part, is_vector
from mpsearch.tasks.task import Task
from recon.graph.samples import named_parts
from recon.likelihood.heads import Gaussian
from recon.likelihood.likelihood import Likelihood

NAMES = ("embedding", "embeddings", "sentence_embedding", "pooler_output")


def vectors(outputs: Mapping[str, Tensor]) -> Likelihood:
    """A Gaussian head over the only output with a vector a sample, or the one called "embedding" or alike.

    Its σ is the root mean square of the vectors' lengths: the nats ½ ‖Δ‖²/σ² of an error across a vector of that length
    are 1 − cosine, to second order. Raises InputError where there is no such output, or all are zero.
    """
    part = find_part(
        outputs,
        NAMES,
        lambda z: is_vector(z) and z.shape[1] > 1,
        "embedding expects one tensor of vectors [N, elements]",
    )
    sigma = float(outputs[part].detach().double().flatten(1).square().sum(1).mean().sqrt())
    if not sigma > 0:
        raise InputError(f"embedding takes its scale from the vectors' lengths, but all {len(outputs[part])} are zero")
    return Likelihood((Gaussian(part, sigma, 1),))


def embedding_metrics(likelihood: Likelihood, labelled: bool) -> tuple[Metric, ...]:
    """The mean cosine between the vectors and the float network's."""
    (head,) = likelihood.heads
    assert isinstance(head, Gaussian)
    part = head.part

    def measure(outputs: Any, reference: Any) -> Tensor:
        z, known = (named_parts(tree)[part].double().flatten(1) for tree in (outputs, reference))
        return F.cosine_similarity(z, known)

    return (mean_metric("cosine", measure, higher_is_better=True, against="reference"),)


TASK = Task("embedding", vectors, embedding_metrics)
