"""Detectors of blood cells: torchvision's RetinaNet and Faster R-CNN on a MobileNetV2 (our ImageNet weights).

`--model benchmarks/bccd.py:retinanet --task detection --data ../shared/data/bccd`. Their weights lie in the folder that
MPSEARCH_CACHE names (default: ~/.cache/mpsearch) and are made by `python benchmarks/train_bccd.py` where they are not.
"""

from __future__ import annotations

import os
from pathlib import Path

from networks import DATA
from safetensors.torch import load_file
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from mpsearch.sources.models import load_model

CACHE = Path(os.environ.get("MPSEARCH_CACHE") or Path.home() / ".cache" / "mpsearch")
CLASSES, WIDTH = 4, 96  # background, and three kinds of cells; channels of the pyramid
SIZES = ((24, 36, 56), (80, 100, 120), (150, 180, 220))  # of anchors, in pixels of 320 × 240, at strides 16, 32, 64
INPUT = {"min_size": 240, "max_size": 320, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def build(name: str, *, pretrained: bool = False) -> nn.Module:
    """`retinanet` or `fasterrcnn`, its backbone with ImageNet's weights if `pretrained`."""
    weights = DATA / "models" / "mobilenet_v2_imagenet.safetensors" if pretrained else None
    features = load_model("mobilenet_v2", weights, demo=False, trained=pretrained).model.features[:18]
    backbone = BackboneWithFPN(features, {"13": "0", "17": "1"}, [96, 320], WIDTH)
    anchors = AnchorGenerator(SIZES, ((0.75, 1.0, 1.33),) * 3)
    if name == "retinanet":
        return RetinaNet(backbone, CLASSES, anchor_generator=anchors, **INPUT)
    pool = MultiScaleRoIAlign(["0", "1"], output_size=5, sampling_ratio=2)
    parts = {"box_head": TwoMLPHead(WIDTH * 25, 256), "box_predictor": FastRCNNPredictor(256, CLASSES)}
    few = {"rpn_post_nms_top_n_test": 100, "rpn_post_nms_top_n_train": 300}
    return FasterRCNN(backbone, rpn_anchor_generator=anchors, box_roi_pool=pool, **parts, **few, **INPUT)


def weights_of(name: str) -> Path:
    """Where the weights lie, or will."""
    return CACHE / f"bccd_{name}.safetensors"


def trained(name: str) -> nn.Module:
    """A detector with its weights, which are made first where they are not there."""
    if not weights_of(name).is_file():
        from train_bccd import train

        train(name)
    model = build(name)
    model.load_state_dict(load_file(str(weights_of(name))))
    return model.eval()


def retinanet() -> nn.Module:
    """RetinaNet (Lin et al., ICCV 2017)."""
    return trained("retinanet")


def fasterrcnn() -> nn.Module:
    """Faster R-CNN (Ren et al., NeurIPS 2015)."""
    return trained("fasterrcnn")
