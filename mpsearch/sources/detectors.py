"""torchvision's detectors: the part of them that is a network, and what they do before and after it.

A detector as a whole resizes images and selects boxes, which no graph describes. Its neural part does the resizing, the
backbone and the heads, for images of one size; `detections` are its anchors and its selection of boxes, as they are.
Parameters keep their names.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import roi_align

from hwmodel.errors import InputError

Outputs = dict[str, Any]
Found = list[dict[str, Tensor]]

MOST_PROPOSALS = 128  # of an image that the box head of a Faster R-CNN gets


def neural_part(model: nn.Module) -> nn.Module:
    """The neural part of a torchvision detector; any other module as it is.

    Raises InputError for detectors of another kind.
    """
    if isinstance(model, RetinaNet | FCOS | SSD):
        return OneStage(model)
    if isinstance(model, FasterRCNN) and not isinstance(model, MaskRCNN) and model.roi_heads.keypoint_predictor is None:
        return TwoStage(model)
    if isinstance(model, FasterRCNN):
        raise InputError(
            f"{type(model).__name__} finds masks or keypoints too, which no task judges: take Faster R-CNN"
        )
    return model


class NeuralPart(nn.Module):
    """The network inside a detector, for images (N, C, H, W) of one size, as the detector takes them.

    `frame` is the size of the images that `features` got last, `inner` that of their contents when the backbone sees
    them, and `maps` are the sizes of the feature maps, of which anchors are made: `detections` are for such images.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        for name, child in detector.named_children():
            if name != "transform":
                self.add_module(name, child)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(detector.transform, f"image_{name}"), dtype=torch.float32)
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)
        self._detector = [detector]  # not a child: its parameters are those of the parts above
        self.frame = self.inner = self.padded = (0, 0)
        self.maps: list[tuple[int, int]] = []

    @property
    def detector(self) -> Any:
        """The detector itself."""
        return self._detector[0]

    @property
    def _selecting(self) -> Any:
        return self.detector.roi_heads if isinstance(self.detector, FasterRCNN) else self.detector

    @property
    def thresholds(self) -> tuple[float, float]:
        """The score above which boxes are selected, and the overlap above which they are not."""
        return float(self._selecting.score_thresh), float(self._selecting.nms_thresh)

    def select(self, confidence: float, overlap: float) -> None:
        """Sets the thresholds."""
        self._selecting.score_thresh, self._selecting.nms_thresh = confidence, overlap

    def part(self, name: str) -> Any:
        """One of the detector's parts."""
        return self.get_submodule(name)

    @property
    def classes(self) -> int:
        """How many classes there are, background among them where the detector counts it."""
        raise NotImplementedError

    def features(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """The maps of the backbone for images as the detector's transform normalises, resizes and pads them."""
        transform = self.detector.transform
        height, width = int(images.shape[2]), int(images.shape[3])
        if transform.fixed_size is not None:
            wide, tall = transform.fixed_size
        else:
            scale = min(transform.min_size[-1] / min(height, width), transform.max_size / max(height, width))
            tall, wide = math.floor(height * scale), math.floor(width * scale)
        images = (images - self.get_buffer("mean")) / self.get_buffer("std")
        if (tall, wide) != (height, width):
            images = F.interpolate(images, size=(tall, wide), mode="bilinear", align_corners=False)
        stride = transform.size_divisible
        below, right = (-side % stride for side in (tall, wide))
        if below or right:
            images = F.pad(images, (0, right, 0, below))
        found = self.part("backbone")(images)
        maps = OrderedDict([("0", found)]) if isinstance(found, Tensor) else found
        self.frame, self.inner, self.padded = (height, width), (tall, wide), (tall + below, wide + right)
        self.maps = [(int(one.shape[2]), int(one.shape[3])) for one in maps.values()]
        return maps

    def anchors(self, generator: Any, images: Tensor) -> list[Tensor]:
        """The anchors (A, 4) of each of N images; `images` is a tensor of their number and device."""
        count = len(images)
        empty = images.new_zeros(1, 1, 1).expand(count, 1, 1)[:, None].expand(count, 1, *self.padded)
        maps = [images.new_zeros(1, 1, 1, 1).expand(count, 1, *size) for size in self.maps]
        found: list[Tensor] = generator(ImageList(empty, [self.inner] * count), maps)
        return found

    def placed(self, found: Found) -> Found:
        """Detections in pixels of the images as they came in."""
        return [{**one, "boxes": resize_boxes(one["boxes"], list(self.inner), list(self.frame))} for one in found]


class OneStage(NeuralPart):
    """RetinaNet, FCOS and SSD: `cls_logits` (N, A, classes), `bbox_regression` (N, A, 4) and, for FCOS,
    `bbox_ctrness` (N, A, 1)."""

    @property
    def classes(self) -> int:
        """See above."""
        head = self.detector.head.classification_head
        return int(head.num_columns if isinstance(self.detector, SSD) else head.num_classes)

    def forward(self, images: Tensor) -> Outputs:
        """The outputs of the heads at every anchor."""
        outputs: Outputs = dict(self.part("head")(list(self.features(images).values())))
        return outputs

    def detections(self, outputs: Outputs) -> Found:
        """What the detector finds, in pixels of its input images."""
        detector, count = self.detector, len(outputs["cls_logits"])
        anchors = self.anchors(detector.anchor_generator, outputs["cls_logits"])
        shapes = [self.inner] * count
        if isinstance(detector, SSD):
            return self.placed(detector.postprocess_detections(outputs, anchors, shapes))
        places = [tall * wide for tall, wide in self.maps]
        each = len(anchors[0]) // sum(places)
        sizes = [place * each for place in places]
        split = {name: list(torch.split(z, sizes, 1)) for name, z in outputs.items()}
        by_level = [list(torch.split(one, sizes)) for one in anchors]
        return self.placed(detector.postprocess_detections(split, by_level, shapes))


class TwoStage(NeuralPart):
    """Faster R-CNN, with proposals (N, P, 4) as a second input: while it is fitted, the box head gets the float
    network's.

    Outputs are `objectness` (N, A, 1) and `deltas` (N, A, 4) of the proposal network, `class_logits` (N, P, classes)
    and `box_regression` (N, P, 4 · classes) of the box head.
    """

    @property
    def classes(self) -> int:
        """See above."""
        return int(self.detector.roi_heads.box_predictor.cls_score.out_features)

    @property
    def most_proposals(self) -> int:
        """P."""
        return min(MOST_PROPOSALS, int(self.detector.rpn.post_nms_top_n()))

    def forward(self, images: Tensor, proposals: Tensor) -> Outputs:
        """The outputs of both heads."""
        maps = self.features(images)
        return {**self._first(maps), **self._boxes(maps, proposals)}

    def _first(self, maps: OrderedDict[str, Tensor]) -> Outputs:
        """The proposal network."""
        objectness, deltas = self.part("rpn").head(list(maps.values()))
        return _by_anchor(objectness, deltas)

    @torch.no_grad()
    def proposed(self, images: Tensor) -> Tensor:
        """The proposals (N, P, 4) for images."""
        return self.proposals(self._first(self.features(images)))

    def _boxes(self, maps: OrderedDict[str, Tensor], proposals: Tensor) -> Outputs:
        """The box head at proposals (N, P, 4)."""
        heads = self.part("roi_heads")
        pool = heads.box_roi_pool
        used = [maps[name] for name in pool.featmap_names if name in maps]
        scales = [2.0 ** round(math.log2(int(one.shape[2]) / self.inner[0])) for one in used]
        image = torch.ones_like(proposals[:, :, :1]).cumsum(0) - 1
        rows = torch.cat([image, proposals], 2).flatten(0, 1)
        level = _level(rows[:, 1:], scales, pool.canonical_scale, pool.canonical_level)
        pooled = torch.zeros(())
        for index, (one, scale) in enumerate(zip(used, scales, strict=True)):
            here = roi_align(one, rows, pool.output_size, scale, pool.sampling_ratio)
            pooled = pooled + here * (level == index).to(here)[:, None, None, None]
        logits, boxes = heads.box_predictor(heads.box_head(pooled))
        per_image = proposals.shape[1]
        return {
            "class_logits": _unflat(logits, 0, per_image),
            "box_regression": _unflat(boxes, 0, per_image),
        }

    @torch.no_grad()
    def proposals(self, outputs: Outputs) -> Tensor:
        """The proposals (N, P, 4) that the proposal network's outputs make, best first, then boxes of no size."""
        rpn, objectness, deltas = self.detector.rpn, outputs["objectness"], outputs["deltas"]
        count = len(objectness)
        anchors = self.anchors(rpn.anchor_generator, objectness)
        each = len(anchors[0]) // sum(tall * wide for tall, wide in self.maps)
        decoded = rpn.box_coder.decode(deltas.flatten(0, 1), anchors).view(count, -1, 4)
        levels = [tall * wide * each for tall, wide in self.maps]
        found, _ = rpn.filter_proposals(decoded, objectness, [self.inner] * count, levels)
        filled: Tensor = objectness.new_zeros(count, self.most_proposals, 4)
        for row, boxes in zip(filled, found, strict=True):
            row[: len(boxes)] = boxes[: len(row)]
        return filled

    def detections(self, outputs: Outputs) -> Found:
        """What the detector finds where the box head had got `proposals`, in pixels of its input images."""
        heads, proposals = self.detector.roi_heads, outputs["proposals"]
        logits, boxes = (outputs[name].flatten(0, 1) for name in ("class_logits", "box_regression"))
        shapes = [self.inner] * len(proposals)
        columns = heads.postprocess_detections(logits, boxes, list(proposals), shapes)
        found = [dict(zip(("boxes", "scores", "labels"), row, strict=True)) for row in zip(*columns, strict=True)]
        return self.placed(found)


def _by_anchor(objectness: Sequence[Tensor], deltas: Sequence[Tensor]) -> Outputs:
    """Maps (N, anchors, H, W) and (N, 4 · anchors, H, W) of all levels as (N, A, 1) and (N, A, 4)."""
    rows = []
    for maps, width in ((objectness, 1), (deltas, 4)):
        by_level = [_unflat(z, 1, width).permute(0, 3, 4, 1, 2).flatten(1, 3) for z in maps]
        rows.append(torch.cat(by_level, 1))
    return {"objectness": rows[0], "deltas": rows[1]}


def _unflat(z: Tensor, dim: int, size: int) -> Tensor:
    """A dimension as two, the second of `size`."""
    return z.reshape(*z.shape[:dim], -1, size, *z.shape[dim + 1 :])


def _level(boxes: Tensor, scales: Sequence[float], canonical_scale: int, canonical_level: int) -> Tensor:
    """Which of the maps each box (K, 4) is read from (Lin et al., CVPR 2017, eq. 1)."""
    first, last = (-math.log2(scale) for scale in (scales[0], scales[-1]))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = torch.floor(canonical_level + torch.log2(area.sqrt() / canonical_scale) + 1e-6)
    return level.clamp(first, last) - first
