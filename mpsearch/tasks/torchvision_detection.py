"""torchvision's detectors: what their heads say, and how their boxes are selected."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.ssd import SSD

from mpsearch.sources.detectors import NeuralPart, OneStage, TwoStage
from mpsearch.tasks.detection import detection
from mpsearch.tasks.task import Task
from recon.graph.samples import Samples
from recon.likelihood.cells import Cells, Channels, Kind
from recon.likelihood.likelihood import Likelihood

SHARE = 0.1  # of a box's size: the σ of its edges
OF_STRIDE = 0.5  # σ of FCOS' distances to the edges, in anchors: an object is some five of them


def torchvision_task(part: NeuralPart) -> Task:
    """The detection task of a torchvision detector: its own heads, anchors, thresholds and suppression."""
    if isinstance(part, TwoStage):
        return detection(
            lambda outputs: part.detections(outputs["own"]),
            likelihood=_two_stage(part),
            name="torchvision",
            classes=part.classes,
            call=lambda model, samples: _called(part, model, samples),
        )
    assert isinstance(part, OneStage)
    return detection(part.detections, likelihood=_one_stage(part), name="torchvision", classes=part.classes)


def _one_stage(part: OneStage) -> Likelihood:
    """RetinaNet and FCOS have a sigmoid for each class, SSD a softmax with background."""
    detector, classes = part.detector, _rows("cls_logits")
    if isinstance(detector, FCOS):
        cells = Cells(classes, _rows("bbox_regression"), quality=_rows("bbox_ctrness"), sigma=OF_STRIDE)
    else:
        kind: Kind = "background" if isinstance(detector, SSD) else "independent"
        cells = Cells(classes, _rows("bbox_regression"), kind=kind, sigma=_sigma(detector.box_coder))
    return Likelihood((cells,))


def _two_stage(part: TwoStage) -> Likelihood:
    """The proposal network's objectness and boxes at every anchor; classes, and a box for each, at every proposal."""
    rpn, heads = part.detector.rpn, part.detector.roi_heads
    proposals = Cells(objectness=_rows("objectness"), boxes=_rows("deltas"), sigma=_sigma(rpn.box_coder))
    boxes = _rows("box_regression")
    found = Cells(_rows("class_logits"), boxes, kind="background", sigma=_sigma(heads.box_coder))
    return Likelihood((proposals, found))


def _rows(part: str) -> Channels:
    return Channels((part,), dim=2)


def _sigma(coder: Any) -> tuple[float, ...]:
    """The σ of shifts and log sizes that move an edge by `SHARE` of the box, in the units of a box coder."""
    shift_x, shift_y, wide, tall = map(float, coder.weights)
    return SHARE * shift_x, SHARE * shift_y, 2 * SHARE * wide, 2 * SHARE * tall


def _called(part: TwoStage, model: nn.Module, samples: Samples) -> Any:
    """The outputs at the proposals that samples bring and, as `own`, at those that `model` makes itself."""
    images, given = samples.call[0]
    outputs = model(images, given)
    proposals = part.proposals(outputs)
    again = model(images, proposals)
    own = {name: again[name] for name in ("class_logits", "box_regression")}
    return {**outputs, "own": {**own, "proposals": proposals}}
