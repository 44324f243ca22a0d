"""A task: what outputs mean, and what they are judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hwmodel.errors import InputError
from mpsearch.tasks.metric import Metric, kl_metric
from mpsearch.tasks.parts import Ending, Examples
from recon.graph.samples import Samples
from recon.likelihood.likelihood import Likelihood

Recognize = Callable[[Mapping[str, Tensor]], Likelihood]  # from example outputs by part
MetricsOf = Callable[[Likelihood, bool], tuple[Metric, ...]]  # from the likelihood, and whether there are targets


Call = Callable[[nn.Module, Samples], Any]  # outputs of a model in eval mode for samples on its device

Look = Callable[[Any], list[dict[str, list[Any]]]]  # from outputs; JSON-ready


def plainly(model: nn.Module, samples: Samples) -> Any:
    """What a model gives for samples."""
    args, kwargs = samples.call
    return model(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Task:
    """What a network is for.

    `likelihood` is fixed, or found in example outputs. `metrics` are fixed (those against targets are left out where
    the data have none), or made for a likelihood and for data with targets or without. KL is always added. `call` says
    how outputs to be measured come about: they may have more parts than the likelihood reads. `look`, if any, is what
    they show people, sample by sample.
    """

    name: str
    likelihood: Likelihood | Recognize
    metrics: tuple[Metric, ...] | MetricsOf = ()
    call: Call = plainly
    look: Look | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.likelihood, Likelihood) and not callable(self.likelihood):
            raise InputError(f"task {self.name!r}: likelihood must be a Likelihood, got {self.likelihood!r}")
        if not callable(self.metrics):
            _checked(self.name, self.metrics)

    def likelihood_of(self, outputs: Any, endings: Mapping[str, Ending] | None = None) -> Likelihood:
        """The likelihood of a network, from its outputs (any pytree) on calibration samples.

        `endings` are what the network's graph says of parts. Raises InputError where outputs are not what the task
        expects.
        """
        parts = Examples(outputs, endings)
        found = self.likelihood if isinstance(self.likelihood, Likelihood) else self.likelihood(parts)
        if not isinstance(found, Likelihood):
            raise InputError(f"task {self.name!r}: its function must give a Likelihood, got a {type(found).__name__}")
        found.check(parts)
        return found

    def metrics_of(self, likelihood: Likelihood, labelled: bool) -> tuple[Metric, ...]:
        """The metrics for a likelihood and data with targets or without, KL last."""
        metrics = self.metrics(likelihood, labelled) if callable(self.metrics) else self.metrics
        usable = tuple(metric for metric in metrics if labelled or metric.against == "reference")
        return _checked(self.name, (*usable, kl_metric(likelihood)))


def _checked(task: str, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
    """Raises InputError unless all are metrics of different names."""
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise InputError(f"task {task!r}: metrics must be Metric records, as mean_metric makes, got {metric!r}")
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise InputError(f"task {task!r}: metrics need different names ('kl' is taken), got {', '.join(names)}")
    return metrics
