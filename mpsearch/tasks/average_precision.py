"""Mean average precision of detections, as COCO defines it (Lin et al., ECCV 2014), by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hwmodel.errors import InputError
from mpsearch.tasks.boxes import Detect, Found, true_boxes
from mpsearch.tasks.metric import Metric

STATISTICS = ("map", "ap50", "ap75")  # the first three of COCO's summary


def precision_metrics(detect: Detect) -> tuple[Metric, ...]:
    """mAP, AP50 and AP75 in percent, against targets."""

    def metric(at: int) -> Metric:
        return Metric(STATISTICS[at], "%", True, lambda: _Precision(detect, at))

    return tuple(map(metric, range(len(STATISTICS))))


def average_precision(found: Sequence[Found], truth: Sequence[Found]) -> tuple[float, float, float]:
    """mAP at overlaps 0.5 to 0.95, AP at 0.5 and at 0.75, in percent, of the best 100 detections of each image.

    Crowds count neither way. Raises InputError where no image has a box.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    labels = sorted({int(label) for one in truth for label in one["labels"]})
    if not labels:
        raise InputError("none of the validation images has a box: there is nothing to find")
    annotations = [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": _as_coco(box),
            "area": float(area),
            "iscrowd": int(crowd),
        }
        for image, one in enumerate(truth)
        for label, box, area, crowd in zip(
            one["labels"], one["boxes"].tolist(), one["area"], one["iscrowd"], strict=True
        )
    ]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    known = COCO(
        {
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": label, "name": str(label)} for label in labels],
            "annotations": annotations,
        }
    )
    detections = [
        {"image_id": image, "category_id": int(label), "bbox": _as_coco(box), "score": score}
        for image, one in enumerate(found)
        for label, box, score in zip(one["labels"].tolist(), one["boxes"].tolist(), one["scores"].tolist(), strict=True)
    ]
    if not detections:
        return 0.0, 0.0, 0.0
    evaluation = COCOeval_faster(known, known.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    first, second, third = (100 * float(value) for value in evaluation.stats[:3])
    return first, second, third


def _as_coco(box: Sequence[float]) -> list[float]:
    """x y width height of x1 y1 x2 y2."""
    left, top, right, bottom = box
    return [left, top, right - left, bottom - top]


@dataclass(slots=True)
class _Precision:
    detect: Detect
    at: int
    found: list[Found] = field(default_factory=list)
    truth: list[Found] = field(default_factory=list)

    def add(self, outputs: Any, targets: Any, reference: Any) -> None:
        found = self.detect(outputs)
        self.found += found
        self.truth += true_boxes(targets, len(found), self.detect.classes)

    def value(self) -> float:
        if not self.truth:
            raise InputError("there are no validation samples: the iterable is empty")
        return average_precision(self.found, self.truth)[self.at]
