"""Boxes: what a detector's outputs say after decoding and non-maximum suppression, and what images really hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from hwmodel.errors import InputError
from recon.graph.samples import named_parts

Decode = Callable[[Any], Any]
Found = dict[str, Tensor]  # boxes (M, 4), scores (M,), labels (M,)

MOST_BEFORE = 30_000  # candidates of an image that suppression looks at
SURE = 0.3  # the score above which a detection is shown to people
CONFIDENCE, OVERLAP, MOST_DETECTIONS = 0.001, 0.65, 300


@dataclass(frozen=True, slots=True)
class Suppression:
    """What becomes of decoded boxes: those of a score up to `confidence` go, then those that overlap a better one of
    their class by more than `overlap` (intersection over union); `most` of an image stay. A box has one class, the
    likeliest. The defaults are those of YOLOX's evaluation (Ge et al., arXiv 2107.08430).
    """

    confidence: float = CONFIDENCE
    overlap: float = OVERLAP
    most: int = MOST_DETECTIONS

    def __call__(self, boxes: Tensor, scores: Tensor) -> Found:
        """The detections among boxes (A, 4) x1 y1 x2 y2 with scores (A, classes) of one image, best first."""
        best, labels = scores.max(1)
        kept = ((best > self.confidence) & boxes.isfinite().all(1)).nonzero().squeeze(1)
        kept = kept[best[kept].argsort(descending=True, stable=True)[:MOST_BEFORE]]
        boxes, best, labels = boxes[kept], best[kept], labels[kept]
        chosen = batched_nms(boxes, best, labels, self.overlap)[: self.most]
        return {"boxes": boxes[chosen], "scores": best[chosen], "labels": labels[chosen]}


@dataclass(slots=True)
class Detect:
    """Detections from outputs (any pytree) of a network: `decode`, then `suppression`.

    `decode` gives boxes (N, A, 4) x1 y1 x2 y2 in pixels of the input and scores (N, A, classes); or, where the
    suppression is its own, a list of N dicts of boxes (M, 4), scores (M,) and labels (M,), as torchvision's detectors.
    The last outputs' detections are kept, as several metrics ask for them. `classes` is how many there are, where
    scores do not say it.
    """

    decode: Decode
    suppression: Suppression
    name: str = "decode"
    classes: int | None = None
    _last: tuple[Any, list[Found]] | None = None

    def __call__(self, outputs: Any) -> list[Found]:
        """The detections of every image. Raises InputError where `decode` raises or gives something else."""
        if self._last is None or self._last[0] is not outputs:
            self._last = (outputs, self._detected(outputs))
        return self._last[1]

    def decoded(self, outputs: Any) -> Any:
        """What `decode` gives, of the right shapes. Raises InputError where it raises or gives something else."""
        count = len(next(iter(named_parts(outputs).values())))
        try:
            made = self.decode(outputs)
        except InputError:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise InputError(f"{self.name} raised {type(error).__name__}: {first}") from error
        if isinstance(made, list) and all(isinstance(one, dict) for one in made):
            if len(made) != count or not all(map(_is_found, made)):
                raise InputError(
                    f"{self.name} must give a dict of boxes [M, 4], scores [M] and labels [M] for each of {count} "
                    f"images, got {_shown(made)}"
                )
            return made
        pair = isinstance(made, tuple | list) and len(made) == 2 and all(isinstance(z, Tensor) for z in made)
        if not pair or not _fit(made[0], made[1], count):
            raise InputError(
                f"{self.name} must give boxes [{count}, anchors, 4] and scores [{count}, anchors, classes], got "
                f"{_shown(made)}"
            )
        return tuple(made)

    @torch.no_grad()
    def _detected(self, outputs: Any) -> list[Found]:
        made = self.decoded(outputs)
        if isinstance(made, tuple):
            self.classes = made[1].shape[2]
        found = made if isinstance(made, list) else [self.suppression(*pair) for pair in zip(*made, strict=True)]
        return [{key: one[key].detach().cpu() for key in ("boxes", "scores", "labels")} for one in found]


def _fit(boxes: Tensor, scores: Tensor, count: int) -> bool:
    return (
        boxes.dim() == scores.dim() == 3
        and boxes.shape[:2] == scores.shape[:2]
        and len(boxes) == count
        and boxes.shape[2] == 4
    )


def _is_found(one: dict[str, Any]) -> bool:
    parts = [part for key in ("boxes", "scores", "labels") if isinstance(part := one.get(key), Tensor)]
    return len(parts) == 3 and [part.shape for part in parts] == [(len(parts[0]), 4), *[(len(parts[0]),)] * 2]


def _shown(made: Any) -> str:
    if isinstance(made, tuple | list):
        return ", ".join(_shown(one) for one in made[:3]) or "nothing"
    if isinstance(made, dict):
        return "{" + ", ".join(f"{key}: {_shown(one)}" for key, one in made.items()) + "}"
    return str(list(made.shape)) if isinstance(made, Tensor) else f"a {type(made).__name__}"


def true_boxes(targets: Any, count: int, classes: int | None = None) -> list[Found]:
    """Targets of a batch as torchvision has them: for each image a dict of boxes (M, 4) x1 y1 x2 y2 in pixels of the
    input and labels (M,), perhaps area (M,) and iscrowd (M,), of zeros where it says nothing.

    Labels are the network's `classes`, from 0; or, where there are `categories` (C,), indices into these ids: then
    classes are categories by rank where there are as many, and by id where the last id is the last class. Raises
    InputError where they are something else.
    """
    if not isinstance(targets, list | tuple) or len(targets) != count or not all(isinstance(t, dict) for t in targets):
        raise InputError(f"targets must be a dict of boxes [M, 4] and labels [M] for each of {count} images")
    return [_true(one, classes) for one in targets]


def _true(target: Mapping[str, Any], classes: int | None) -> Found:
    boxes, labels = target.get("boxes"), target.get("labels")
    if not isinstance(boxes, Tensor) or not isinstance(labels, Tensor):
        named = ", ".join(target) or "nothing"
        raise InputError(f"targets of an image must hold tensors boxes and labels, got {named}")
    boxes = boxes.reshape(-1, 4) if boxes.numel() == 0 else boxes
    if boxes.shape != (len(labels), 4):
        raise InputError(f"targets of an image must be boxes [M, 4] and labels [M], got {_shown([boxes, labels])}")
    sides = (boxes[:, 2:] - boxes[:, :2]).double()
    if not (sides > 0).all():
        row = int((sides <= 0).any(1).int().argmax())
        raise InputError(f"boxes are x1 y1 x2 y2 with x1 < x2 and y1 < y2, got {boxes[row].tolist()}")
    return {
        "boxes": boxes,
        "labels": _as_classes(labels.long(), target.get("categories"), classes),
        "area": target.get("area", sides.prod(1)),
        "iscrowd": target.get("iscrowd", torch.zeros(len(labels), dtype=torch.int64)),
    }


def _as_classes(labels: Tensor, ids: Tensor | None, classes: int | None) -> Tensor:
    if ids is not None and classes not in (None, len(ids)):
        if int(ids[-1]) + 1 != classes:
            raise InputError(
                f"the annotations have {len(ids)} categories with ids from {ids[0]} to {ids[-1]}, but the network has "
                f"{classes} classes; name annotations with the network's categories by --annotations"
            )
        return ids[labels]
    if len(labels) and (labels.min() < 0 or (classes is not None and labels.max() >= classes)):
        raise InputError(
            f"boxes have labels from {labels.min()} to {labels.max()}, but the network has {classes} classes"
        )
    return labels
