"""Classification: one class a sample, or one yes-or-no decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hwmodel.errors import InputError
from mpsearch.tasks.metric import Metric, checked_tensor, mean_metric
from mpsearch.tasks.parts import decision_form, ending_of, find_part, form_of, is_vector
from mpsearch.tasks.task import Task
from recon.graph.samples import named_parts
from recon.likelihood.heads import Bernoulli, Categorical
from recon.likelihood.likelihood import Likelihood

NAMES = ("logits", "out")
Discrete = Categorical | Bernoulli


def class_scores(outputs: Mapping[str, Tensor]) -> Likelihood:
    """The head of a classifier in example outputs by part.

    The scores are a single tensor, the only one with a vector a sample, or called "logits" or "out". Several columns
    are classes, or decisions of their own where the graph ends in a sigmoid; one column, or a number a sample, is one
    decision. Where the graph does not tell, values that are probabilities by what they add up to, or by lying between
    0 and 1 where there is one column, are taken as such. Raises InputError for anything else.
    """
    single = len(outputs) == 1
    part = find_part(
        outputs,
        NAMES,
        lambda z: is_vector(z) or (single and z.dim() == 1),
        "classification expects one tensor of class scores [N, classes]",
    )
    return Likelihood((discrete(outputs, part),))


def discrete(outputs: Mapping[str, Tensor], part: str) -> Discrete:
    """The head of a part (N, classes, …), (N, 1, …) or (N,), in the form that the graph tells, else its values."""
    z, ending = outputs[part], ending_of(outputs, part)
    if ending == "sigmoid":
        return Bernoulli(part, None if z.dim() == 1 else 1, "probabilities")
    if z.dim() == 1 or z.shape[1] == 1:
        return Bernoulli(part, None if z.dim() == 1 else 1, "logits" if ending == "logits" else decision_form(z))
    return Categorical(part, 1, ending or form_of(z, 1))


def decisions(head: Discrete, outputs: Any) -> Tensor:
    """What outputs (any pytree) decide by a head: the class, or 0 or 1, at every position (N, decisions)."""
    logits = head.logits(named_parts(outputs)[head.part])
    return logits.argmax(-1) if isinstance(head, Categorical) else (logits > 0).long().flatten(1)


def n_classes(head: Discrete, outputs: Any) -> int:
    """The number of classes that outputs (any pytree) tell apart."""
    return named_parts(outputs)[head.part].shape[head.dim] if isinstance(head, Categorical) else 2


def discrete_head(likelihood: Likelihood) -> Discrete:
    """The only head of a likelihood. Raises InputError unless it decides between classes."""
    head = likelihood.heads[0]
    if len(likelihood.heads) > 1 or not isinstance(head, Categorical | Bernoulli):
        raise InputError(f"these metrics need one Categorical or Bernoulli head, got {likelihood.heads}")
    return head


def labels(targets: Any, decided: Tensor, classes: int, ignore: int | None = None) -> Tensor:
    """Labels laid out as decisions (N, decisions). Raises InputError where there are others, or of no such class."""
    found = checked_tensor(targets, f"labels for {list(decided.shape)} decisions").to(decided.device)
    if found.numel() != decided.numel() or len(found) != len(decided):
        raise InputError(
            f"targets must be one label for each decision, {list(decided.shape)} of them, got {list(found.shape)}"
        )
    found = found.reshape(decided.shape)
    known = found if ignore is None else found[found != ignore]
    if known.numel() and (known.min() < 0 or known.max() >= classes or (known != known.long()).any()):
        raise InputError(
            f"labels must be whole numbers from 0 to {classes - 1}, as the network has {classes} classes; got values "
            f"from {known.min().item():g} to {known.max().item():g}"
        )
    return found.long()


def classification_metrics(likelihood: Likelihood, labelled: bool) -> tuple[Metric, ...]:
    """Top-1 against labels, the share of right decisions; without labels the agreement with the float network's.

    Of several decisions a sample, the surest is the class where there is one label a sample.
    """
    head = discrete_head(likelihood)
    return (_top1(head),) if labelled else (agreement(head),)


def agreement(head: Discrete) -> Metric:
    """Percent of decisions that are the float network's."""

    def measure(outputs: Any, reference: Any) -> Tensor:
        return _share(decisions(head, outputs) == decisions(head, reference))

    return mean_metric("agreement", measure, unit="%", higher_is_better=True, against="reference", finish=_percent)


def _top1(head: Discrete) -> Metric:
    def measure(outputs: Any, targets: Any) -> Tensor:
        return _share(torch.eq(*_decided(head, outputs, targets)))

    return mean_metric(
        "top1", measure, unit="%", higher_is_better=True, finish=_percent, chance=lambda: _Independent(head)
    )


def _decided(head: Discrete, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Decisions and labels, both (N, decisions)."""
    decided, classes = decisions(head, outputs), n_classes(head, outputs)
    several = isinstance(head, Bernoulli) and decided.shape[1] > 1
    if several and isinstance(targets, Tensor) and targets.numel() == len(decided):
        rows = head.logits(named_parts(outputs)[head.part]).flatten(1)
        decided, classes = rows.argmax(1, keepdim=True), rows.shape[1]
    return decided, labels(targets, decided, classes)


@dataclass(slots=True)
class _Independent:
    """The percent of decisions that would be right were the labels drawn without regard to the sample (the chance
    agreement of Cohen's kappa, Educ. Psychol. Meas. 20, 1960)."""

    head: Discrete
    decided: list[Tensor] = field(default_factory=list)
    known: list[Tensor] = field(default_factory=list)

    def add(self, outputs: Any, targets: Any, reference: Any) -> None:
        decided, known = _decided(self.head, outputs, targets)
        self.decided.append(decided.flatten().cpu())
        self.known.append(known.flatten().cpu())

    def value(self) -> float:
        decided, known = torch.cat(self.decided), torch.cat(self.known)
        classes = int(torch.maximum(decided.max(), known.max())) + 1
        shares = [torch.bincount(one, minlength=classes).double() / len(one) for one in (decided, known)]
        return _percent(float(shares[0] @ shares[1]))


def _share(right: Tensor) -> Tensor:
    return right.to(torch.float64).mean(1)


def _percent(share: float) -> float:
    return 100 * share


TASK = Task("classification", class_scores, classification_metrics)
