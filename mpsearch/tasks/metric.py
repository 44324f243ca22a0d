"""Metrics: figures of a network on validation samples, gathered batch after batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from hwmodel.errors import InputError
from mpsearch.tasks.figure import KL, Figure
from recon.graph.samples import named_parts
from recon.likelihood.likelihood import Likelihood

Against = Literal["targets", "reference"]
Measure = Callable[[Any, Any], Any]  # (outputs, targets or reference outputs) → values (N,), or a number for the batch


class Tally(Protocol):
    """A metric that is being gathered."""

    def add(self, outputs: Any, targets: Any, reference: Any) -> None:
        """Adds a batch: what the network gives, the targets (None without), and what the float network gives."""

    def value(self) -> float:
        """The metric over all batches so far. Raises InputError where there was no sample."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure by which networks are judged; `start` begins a new tally.

    `against` says what outputs are compared with: targets, which not every data set has, or the float network's.
    `chance` begins the tally of what the same outputs would reach were the targets independent of them, where that is
    known.
    """

    name: str
    unit: str
    higher_is_better: bool
    start: Callable[[], Tally]
    against: Against = "targets"
    chance: Callable[[], Tally] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("a metric needs a name")
        if self.against not in ("targets", "reference"):
            raise InputError(f"metric {self.name!r} is against 'targets' or 'reference', got {self.against!r}")

    @property
    def figure(self) -> Figure:
        """What is written down of it."""
        return Figure(self.name, self.unit, self.higher_is_better, self.against == "targets")


def mean_metric(
    name: str,
    measure: Measure,
    *,
    unit: str = "",
    higher_is_better: bool,
    against: Against = "targets",
    finish: Callable[[float], float] = float,
    chance: Callable[[], Tally] | None = None,
) -> Metric:
    """The metric `finish(mean over samples of measure(outputs, targets))`, from a plain function.

    `measure` gets a batch as the network and the data give it, and returns values (N,), or one number for the batch,
    which then counts once for each of its samples. With `against="reference"` it gets the float network's outputs
    in place of the targets. `finish` turns the mean into the figure: a root, an exponential, percent.
    """
    return Metric(name, unit, higher_is_better, lambda: _Mean(name, measure, against, finish), against, chance)


def kl_metric(likelihood: Likelihood) -> Metric:
    """KL(float network ‖ network) in nats per sample, which every task has."""
    return Metric(KL, "nats", False, lambda: _Divergence(likelihood), "reference")


def batch_size(outputs: Any) -> int:
    """The number of samples of an output pytree."""
    return len(next(iter(named_parts(outputs).values())))


@dataclass(slots=True)
class _Mean:
    name: str
    measure: Measure
    against: Against
    finish: Callable[[float], float]
    total: float = 0.0
    count: int = 0

    def add(self, outputs: Any, targets: Any, reference: Any) -> None:
        size = batch_size(outputs)
        try:
            found = self.measure(outputs, targets if self.against == "targets" else reference)
            values = torch.as_tensor(found).detach().double()
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"metric {self.name!r} raised {type(error).__name__}: {_first_line(error)}") from error
        if values.shape not in ((), (size,)):
            raise InputError(
                f"metric {self.name!r} must give one number, or one for each of the {size} samples; "
                f"got shape {list(values.shape)}"
            )
        self.total += float(values.mean()) * size
        self.count += size

    def value(self) -> float:
        return float(self.finish(self.total / _some(self.count)))


@dataclass(slots=True)
class _Divergence:
    likelihood: Likelihood
    total: float = 0.0
    count: int = 0

    def add(self, outputs: Any, targets: Any, reference: Any) -> None:
        nats = self.likelihood.divergence(named_parts(reference), named_parts(outputs))
        broken = ~torch.isfinite(nats)
        if broken.any():
            raise InputError(
                f"the network must give finite outputs, but {int(broken.sum())} of a batch of {len(nats)} have NaN or "
                f"infinite ones (first: sample {self.count + int(broken.int().argmax())}); check its weights and inputs"
            )
        self.total += float(nats.sum())
        self.count += len(nats)

    def value(self) -> float:
        return self.total / _some(self.count)


def _some(count: int) -> int:
    if not count:
        raise InputError("there are no validation samples: the iterable is empty")
    return count


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def checked_tensor(targets: Any, what: str) -> Tensor:
    """Targets that must be one tensor. Raises InputError, saying `what` was expected."""
    if not isinstance(targets, Tensor):
        raise InputError(f"expected {what} as targets, got a {type(targets).__name__}")
    return targets
