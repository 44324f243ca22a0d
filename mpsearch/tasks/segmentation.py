"""Segmentation: a class at every pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hwmodel.errors import InputError
from mpsearch.tasks.classification import (
    NAMES,
    Discrete,
    agreement,
    decisions,
    discrete,
    discrete_head,
    labels,
    n_classes,
)
from mpsearch.tasks.metric import Metric
from mpsearch.tasks.parts import find_part, is_vector
from mpsearch.tasks.task import Task
from recon.likelihood.likelihood import Likelihood

IGNORE = 255  # the label of pixels that do not count


def class_map(outputs: Mapping[str, Tensor]) -> Likelihood:
    """The head of a segmentation network in example outputs by part: a map (N, classes, H, W) of scores.

    It is the only map, or called "out" or "logits" (torchvision's "aux" does not count). One channel is foreground or
    background; where the graph ends in a sigmoid, all are. Raises InputError for anything else.
    """
    part = find_part(
        outputs,
        NAMES,
        lambda z: z.dim() >= 4 and not is_vector(z),
        "segmentation expects one map of class scores [N, classes, H, W]",
    )
    return Likelihood((discrete(outputs, part),))


def segmentation_metrics(likelihood: Likelihood, labelled: bool) -> tuple[Metric, ...]:
    """Mean IoU and pixel accuracy against labels; without labels the agreement with the float network's pixels."""
    head = discrete_head(likelihood)
    if not labelled:
        return (agreement(head),)
    return (
        Metric("miou", "%", True, lambda: _Confusion(head, mean_iou)),
        Metric("pixel_accuracy", "%", True, lambda: _Confusion(head, pixel_accuracy)),
    )


def mean_iou(confusion: Tensor) -> float:
    """Mean intersection over union in percent, from counts (classes by label, classes by decision) of pixels.

    Classes that neither labels nor decisions have do not count (PASCAL VOC; Everingham et al., IJCV 2010).
    """
    both = confusion.diagonal()
    either = confusion.sum(0) + confusion.sum(1) - both
    return 100 * float((both[either > 0].double() / either[either > 0]).mean())


def pixel_accuracy(confusion: Tensor) -> float:
    """Percent of right pixels, from counts (classes by label, classes by decision)."""
    return 100 * float(confusion.diagonal().sum()) / float(confusion.sum())


@dataclass(slots=True)
class _Confusion:
    """Counts pixels by label and decision, those with label `IGNORE` left out."""

    head: Discrete
    finish: Callable[[Tensor], float]
    counts: Tensor | None = None

    def add(self, outputs: Any, targets: Any, reference: Any) -> None:
        decided, classes = decisions(self.head, outputs), n_classes(self.head, outputs)
        known = labels(targets, decided, classes, IGNORE)
        counted = known != IGNORE
        pairs = torch.bincount(known[counted] * classes + decided[counted], minlength=classes**2).cpu()
        self.counts = pairs.view(classes, classes) + (0 if self.counts is None else self.counts)

    def value(self) -> float:
        if self.counts is None or not self.counts.any():
            raise InputError(f"there are no labelled pixels: no validation samples, or all have label {IGNORE}")
        return self.finish(self.counts)


TASK = Task("segmentation", class_map, segmentation_metrics)
