"""The real networks of the benchmarks, with their images (../shared/data or MPSEARCH_DATA)."""

from __future__ import annotations

import os
from pathlib import Path

from mpsearch.console import Console
from mpsearch.folder import RunFolder
from mpsearch.options import RunOptions
from mpsearch.pipeline import Run

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("MPSEARCH_DATA") or ROOT.parent / "shared" / "data")


def start(network: str) -> Run:
    """MobileNetV2 on ImageNet or ResNet-20 on CIFAR-10: the float network, its images and its logits."""
    if network == "resnet20":
        model, weights, images, samples = f"{ROOT}/benchmarks/resnet20.py:make", "cifar_resnet20", "cifar10", 1024
    else:
        model, weights, images, samples = "mobilenetv2", "mobilenet_v2_imagenet", "imagenet", 512
    path = str(DATA / "models" / f"{weights}.safetensors")
    options = RunOptions(
        model, size_budget_bytes=1, weights=path, data=str(DATA / images), samples=samples, edges="free"
    )
    return Run(options, RunFolder(Path("unused")), Console())
