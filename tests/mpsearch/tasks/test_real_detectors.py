"""Real detectors on real images: float accuracy as the data's own reference says, and a Faster R-CNN of full size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpsearch.files.folder import RunFolder
from mpsearch.request.options import FinishOptions
from mpsearch.run.loaded import Loaded
from mpsearch.show.console import Console

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("MPSEARCH_DATA") or ROOT.parent / "shared" / "data")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "coco").is_dir(), reason=f"needs the images in {DATA}; set MPSEARCH_DATA"),
]
YOLOX = f"{DATA}/models/yolox_nano_coco.py"
FASTESTDET = f"{ROOT}/benchmarks/fastestdet.py"


def float_figures(folder: Path, source: str, **options: Any) -> dict[str, float]:
    given = {"model": f"{source}:factory", "decode": f"{source}:decode", "data": f"{DATA}/coco", "task": "detection"}
    loaded = Loaded(FinishOptions(**given, samples=16, **options), RunFolder(folder), Console())
    return loaded.judge.truth


def test_yolox_has_the_average_precision_that_its_json_says(tmp_path: Path) -> None:
    found = float_figures(tmp_path, YOLOX)
    said = json.loads((DATA / "models" / "yolox_nano_coco.json").read_text())["measured_on_data_coco_val"]
    for name, reference in (("map", "mAP"), ("ap50", "AP50"), ("ap75", "AP75")):
        assert round(found[name] / 100, 4) == pytest.approx(said[reference], abs=1.1e-4)


def test_fastestdet_has_the_average_precision_that_its_json_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    found = float_figures(tmp_path, FASTESTDET, nms=0.45)
    said = json.loads((DATA / "models" / "fastestdet_coco.json").read_text())["measured_on_data_coco_val"]
    assert found["map"] / 100 == pytest.approx(said["mAP"], abs=0.005)  # measured there with several classes a box
    assert found["ap50"] / 100 == pytest.approx(said["AP50"], abs=0.01)


def test_a_faster_rcnn_of_full_size_in_twelve_gibibytes(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torchvision.models.detection import fasterrcnn_resnet50_fpn\n"
        "import torch\n"
        "def net():\n"
        "    torch.manual_seed(0)\n"
        "    options = {'weights': None, 'weights_backbone': None, 'num_classes': 4}\n"
        "    return fasterrcnn_resnet50_fpn(**options, min_size=240, max_size=320, box_score_thresh=0.001)\n"
    )
    given = ["--model", f"{tmp_path / 'net.py'}:net", "--task", "detection", "--data", str(DATA / "bccd")]
    small = ["--samples", "16", "--val-samples", "4", "--bits", "W8A8", "--steps", "0", "--out", str(tmp_path / "out")]
    code = "import resource, sys; from mpsearch.cli.main import main\ntry: main()\n"
    code += "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, "reconstruct", *given, *small, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["finished"]["kl"] >= 0
    assert int(done.stderr.split()[-1]) < 12 * 2**20
