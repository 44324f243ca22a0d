"""Regression: numbers, or maps of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hwmodel.errors import InputError
from mpsearch.tasks.metric import Against, Metric, checked_tensor, mean_metric
from mpsearch.tasks.parts import find_part
from mpsearch.tasks.task import Task
from recon.graph.samples import named_parts
from recon.likelihood.heads import Gaussian
from recon.likelihood.likelihood import Likelihood

CONSTANT = 1e-6  # of its size: a column that varies less does not vary


def values(outputs: Mapping[str, Tensor]) -> Likelihood:
    """A Gaussian head over the only floating-point output, its σ the standard deviation over the samples.

    Columns (N, K) and channels (N, K, H, W) have a σ each; numbers (N,), and (N, A, B), where either may be the
    channels, have one. Raises InputError where several outputs are possible, or none varies.
    """
    part = find_part(outputs, (), lambda z: True, "regression expects one tensor of values")
    z = outputs[part].detach().double()
    dim = None if z.dim() in (1, 3) else 1
    columns = z.reshape(-1, 1) if dim is None else z.movedim(1, -1).flatten(0, -2)
    sigma, size = columns.std(0, correction=0), columns.square().mean(0).sqrt()
    varies = sigma > CONSTANT * size
    if not varies.any():
        raise InputError(
            f"regression takes its scale from how outputs vary, but all {len(z)} samples give the same; "
            "give more calibration samples, or a Gaussian head with its sigma in FILE.py:task"
        )
    # A column that does not vary is measured by its size: it must not outweigh all others.
    filled = sigma.where(varies, size.where(size > 0, sigma.max())).tolist()
    return Likelihood((Gaussian(part, filled[0] if dim is None else tuple(filled), dim),))


def regression_metrics(likelihood: Likelihood, labelled: bool) -> tuple[Metric, ...]:
    """The root of the mean squared error, in the outputs' unit: to targets, without them to the float network."""
    (head,) = likelihood.heads
    assert isinstance(head, Gaussian)
    part = head.part
    if labelled:
        return (_rmse("rmse", part, "targets"),)
    return (_rmse("rmse_to_float", part, "reference"),)


def _rmse(name: str, part: str, against: Against) -> Metric:
    def measure(outputs: Any, other: Any) -> Tensor:
        z = named_parts(outputs)[part]
        wanted = checked_tensor(other, f"values {list(z.shape)}") if against == "targets" else named_parts(other)[part]
        if wanted.numel() != z.numel() or len(wanted) != len(z):
            raise InputError(f"targets must have the shape of the outputs, {list(z.shape)}, got {list(wanted.shape)}")
        return (z.double() - wanted.to(z.device).double().view_as(z)).square().flatten(1).mean(1)

    return mean_metric(name, measure, higher_is_better=False, against=against, finish=math.sqrt)


TASK = Task("regression", values, regression_metrics)
