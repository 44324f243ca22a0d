"""The real networks of the benchmarks, with their images (../shared/data or MPSEARCH_DATA)."""

from __future__ import annotations

import os
from pathlib import Path

from mpsearch.files.folder import RunFolder
from mpsearch.request.options import RunOptions
from mpsearch.run.steps import Run
from mpsearch.show.console import Console

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("MPSEARCH_DATA") or ROOT.parent / "shared" / "data")
SAMPLES = {"resnet20": 1024, "mobilenetv2": 512, "efficientnet_lite0": 512}
# Model, weights and images of each.
SOURCES = {
    "resnet20": (f"{ROOT}/benchmarks/resnet20.py:make", "cifar_resnet20", "cifar10"),
    "mobilenetv2": ("mobilenetv2", "mobilenet_v2_imagenet", "imagenet"),
    "efficientnet_lite0": (
        f"{DATA}/models/efficientnet_lite0_imagenet.py:factory",
        "efficientnet_lite0_imagenet",
        "imagenet",
    ),
}
WBITS = (2, 3, 4, 6, 8)


def start(network: str, samples: int | None = None) -> Run:
    """ResNet-20 on CIFAR-10, or MobileNetV2 or EfficientNet-Lite0 on ImageNet: the network, its calibration images
    (all, or `samples`), its validation images. JSON beside the weights says how pixels are normalised."""
    model, weights, images = SOURCES[network]
    options = RunOptions(
        model=model,
        size_budget_bytes=1,
        weights=str(DATA / "models" / f"{weights}.safetensors"),
        data=str(DATA / images),
        wbits=WBITS,
        samples=samples or SAMPLES[network],
        edges="free",
    )
    return Run(options, RunFolder(Path("unused")), Console())
