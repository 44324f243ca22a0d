"""The recipes of the README, run as they stand: in a folder that holds what they name."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mpsearch.cli.main import main

README = (Path(__file__).resolve().parent.parent / "README.md").read_text("utf-8")
QUICK = ("--steps", "2", "--population", "16", "--generations", "3", "--samples", "24")

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)).eval()
"""

YOLO = """
import torch
from torch import nn

class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.fine, self.coarse = nn.Conv2d(32, 7, 3, 2, 1), nn.Conv2d(32, 7, 3, 4, 1)

    def forward(self, x):
        y = self.body(x)
        return [self.fine(y), self.coarse(y)]

def make():
    torch.manual_seed(0)
    return Detector().eval()

def decode(maps):
    boxes, scores = [], []
    for z in maps:
        side, count = 32 / z.shape[3], z.shape[3]
        y, x = torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
        place = torch.stack([x.flatten(), y.flatten()], 1) * side + side / 2
        z = z.flatten(2).transpose(1, 2)
        centre, half = place + 4 * z[..., :2], 2 * z[..., 2:4].exp()
        boxes.append(torch.cat([centre - half, centre + half], 2))
        scores.append(z[..., 4:5].sigmoid() * z[..., 5:].sigmoid())
    return torch.cat(boxes, 1), torch.cat(scores, 1)
"""


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipes name: `net.py`, `images`, `yolo.py`, `coco`."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, code in (("net", NET), ("yolo", YOLO)):
        (folder / f"{name}.py").write_text(code)
        known = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
        (folder / f"{name}.json").write_text(json.dumps(known))
    for number in range(24):
        paint(folder / "images" / "train" / f"{number}.png", number)
        paint(folder / "images" / "val" / ("cat", "dog")[number % 2] / f"{number}.png", 100 + number)
        paint(folder / "coco" / "train" / f"{number}.png", number)
    images = [{"id": number, "file_name": f"{number}.png", "width": 32, "height": 32} for number in range(8)]
    for one in images:
        paint(folder / "coco" / "val" / str(one["file_name"]), 200)
    boxes = [
        {
            "id": number,
            "image_id": number,
            "category_id": 1 + number % 2,
            "bbox": [8, 4, 16, 8],
            "area": 128,
            "iscrowd": 0,
        }
        for number in range(8)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    truth = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "coco" / "instances_val.json").write_text(json.dumps(truth))
    return folder


def recipe(heading: str) -> list[list[str]]:
    """The command lines under a heading of the README."""
    part = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [shlex.split(line) for line in re.findall(r"^    (mpsearch .*)$", part, re.MULTILINE)]


def run(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    more = QUICK if line[1] == "run" else ()
    monkeypatch.setattr(sys, "argv", [*line, *more])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code, line


def test_the_recipes_run(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    lines = [recipe(name) for name in ("Your own network", "A detector", "A device", "Export")]
    assert list(map(len, lines)) == [2, 1, 2, 2]
    for line in (line for part in lines for line in part):
        run(line, monkeypatch)
    capfd.readouterr()

    def summary(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((place / "runs" / name / "summary.json").read_text())
        return found

    for name, budget in (("mine", 30_000), ("yolo", 60_000), ("npu", 30_000)):
        assert summary(name)["size_budget_bytes"] == budget
        model = place / "runs" / name / "model-budget.safetensors"
        assert model.stat().st_size == summary(name)["size_bytes"] <= budget
    assert [figure["name"] for figure in summary("mine")["judged_by"]] == ["top1", "kl"]
    assert summary("yolo")["judged_by"][0]["name"].startswith("map")
    assert summary("npu")["latency_s"] <= summary("npu")["latency_budget_s"]
    rows = list(csv.DictReader((place / "bits.csv").read_text().splitlines()))
    assert {row["layer"] for row in rows} == {"0", "2", "4", "8"}


def test_what_is_exported_runs_elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(place)
    if not (place / "model.onnx").is_file():
        pytest.skip("the recipes have not run")
    import mpsearch

    low_bit = mpsearch.load_packed("runs/mine/model-budget.safetensors", allow="net.py:make")
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    session = runtime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, low_bit(x).numpy(), atol=1e-4)
