"""Detection: objects, their classes and their boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hwmodel.errors import InputError
from mpsearch.tasks.average_precision import precision_metrics
from mpsearch.tasks.boxes import SURE, Decode, Detect, Suppression
from mpsearch.tasks.layout import ADVICE, cells_of
from mpsearch.tasks.metric import Metric
from mpsearch.tasks.parts import Examples
from mpsearch.tasks.task import Call, Task, plainly
from recon.likelihood.likelihood import Likelihood

NAME = "detection"


def detection(
    decode: Decode,
    suppression: Suppression | None = None,
    likelihood: Likelihood | None = None,
    *,
    name: str = "decode",
    classes: int | None = None,
    call: Call = plainly,
) -> Task:
    """The task of a detector whose outputs `decode` turns into boxes and scores (see `Detect`).

    Without a `likelihood` it is found in the derivatives of `decode` (see `cells_of`). `name` is what messages call
    `decode`; `classes` is needed where it gives finished detections, whose scores do not tell how many there are;
    `call` is that of a `Task`.
    """
    detect = Detect(decode, suppression or Suppression(), name, classes)

    def recognized(outputs: Mapping[str, Tensor]) -> Likelihood:
        assert isinstance(outputs, Examples)

        def decoded(whole: object) -> tuple[Tensor, Tensor]:
            made = detect.decoded(whole)
            if isinstance(made, list):
                raise InputError(f"{name} gives finished detections, which do not say what the outputs mean; {ADVICE}")
            boxes, scores = made
            return boxes, scores

        return Likelihood((cells_of(outputs.whole, decoded),))

    def metrics(likelihood: Likelihood, labelled: bool) -> tuple[Metric, ...]:
        return precision_metrics(detect) if labelled else ()

    def look(outputs: Any) -> list[dict[str, list[Any]]]:
        return [{key: value[one["scores"] > SURE].tolist() for key, value in one.items()} for one in detect(outputs)]

    return Task(NAME, likelihood or recognized, metrics, call, look)
