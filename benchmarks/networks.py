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
SAMPLES = {"resnet20": 1024, "mobilenetv2": 512}
WBITS = (2, 3, 4, 6, 8)


def start(network: str, samples: int | None = None) -> Run:
    """MobileNetV2 on ImageNet or ResNet-20 on CIFAR-10: the network, its images (all, or `samples`), its logits."""
    if network == "resnet20":
        model, weights, images = f"{ROOT}/benchmarks/resnet20.py:make", "cifar_resnet20", "cifar10"
    else:
        model, weights, images = "mobilenetv2", "mobilenet_v2_imagenet", "imagenet"
    path = str(DATA / "models" / f"{weights}.safetensors")
    options = RunOptions(
        model,
        size_budget_bytes=1,
        weights=path,
        data=str(DATA / images),
        wbits=WBITS,
        samples=samples or SAMPLES[network],
        edges="free",
    )
    return Run(options, RunFolder(Path("unused")), Console())
