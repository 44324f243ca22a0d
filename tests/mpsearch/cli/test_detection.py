"""Detectors from the command line and from Python: small ones on painted images, and what does not fit."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import Command, refused
from PIL import Image

import mpsearch
from hwmodel.errors import InputError
from mpsearch.export.packed import load_packed
from mpsearch.files.folder import RunFolder
from mpsearch.request.options import FinishOptions
from mpsearch.run.loaded import Loaded
from mpsearch.run.sent import sent
from mpsearch.run.spread import finish_point
from mpsearch.show.boxes import MOST_BYTES
from mpsearch.show.console import Console
from mpsearch.sources.detectors import NeuralPart, OneStage, TwoStage, neural_part
from mpsearch.tasks.detection import detection

MODELS = '''
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

class Net(nn.Module):
    """A cell of eight pixels finds the brightness in it: x y w h, objectness, two classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(8, 7, 2, 2)
        with torch.no_grad():
            self.head.bias[4] -= 2

    def forward(self, x):
        return self.head(self.body(x))

def decode(z):
    n, _, h, w = z.shape
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    z = z.permute(0, 2, 3, 1)
    centre = 8 * (torch.stack([x, y], -1) + z[..., :2])
    half = 4 * z[..., 2:4].exp()
    boxes = torch.cat([centre - half, centre + half], -1).flatten(1, 2)
    return boxes, (z[..., 4:5].sigmoid() * z[..., 5:].sigmoid()).flatten(1, 2)

def nothing(z):
    boxes, scores = decode(z)
    return boxes, scores * 1e-9

def flat(z):
    return decode(z)[0]

def net():
    return Net().eval()

class Backbone(nn.Module):
    out_channels = 8

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8))

    def forward(self, x):
        return self.body(x)

SIZE = {"min_size": 32, "max_size": 64}

def retinanet():
    anchors = AnchorGenerator(((8,),), ((0.5, 1.0),))
    return RetinaNet(Backbone(), 3, anchor_generator=anchors, score_thresh=0.001, **SIZE).eval()

def faster():
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign
    anchors = AnchorGenerator(((8,),), ((0.5, 1.0),))
    pool = MultiScaleRoIAlign(["0"], 3, 2)
    torch.manual_seed(0)
    head = {"box_head": TwoMLPHead(72, 16), "box_predictor": FastRCNNPredictor(16, 3)}
    options = {"rpn_post_nms_top_n_test": 8, "box_score_thresh": 0.001, "rpn_score_thresh": 0.0}
    options |= {"rpn_anchor_generator": anchors, "box_roi_pool": pool}
    return FasterRCNN(Backbone(), None, **head, **SIZE, **options).eval()
'''
BUDGET = ("--samples", 16, "--population", 20, "--generations", 5, "--steps", 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`net.py`, and `data/` with 16 images to calibrate on and four to measure on, in each a white box."""
    (tmp_path / "net.py").write_text(MODELS)
    rng, images, annotations = np.random.default_rng(0), [], []
    for name, count in (("calib", 16), ("val", 4)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
            x, y = map(int, rng.integers(0, 16, 2))
            pixels[y : y + 12, x : x + 12] = 255
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
            if name == "val":
                images.append({"id": index, "file_name": f"{index}.png", "width": 32, "height": 32})
                box = {"image_id": index, "id": index + 1, "category_id": 1 + index % 2, "bbox": [x, y, 12, 12]}
                annotations.append(box | {"area": 144, "iscrowd": 0})
    write(tmp_path, images, annotations, [1, 2])
    (tmp_path / "net.json").write_text(json.dumps({"input_size": [3, 32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]}))
    return tmp_path


def write(folder: Path, images: list[dict], annotations: list[dict], categories: list[int]) -> None:  # type: ignore[type-arg]
    data = {"images": images, "annotations": annotations, "categories": [{"id": one} for one in categories]}
    (folder / "data" / "instances_val.json").write_text(json.dumps(data))


def annotations(folder: Path) -> dict:  # type: ignore[type-arg]
    found: dict = json.loads((folder / "data" / "instances_val.json").read_text())  # type: ignore[type-arg]
    return found


def arguments(folder: Path, name: str, *more: object) -> tuple[object, ...]:
    given = ("--model", f"{folder / 'net.py'}:{name}", "--task", "detection", "--data", folder / "data")
    return (*given, "--out", folder / f"out-{name}", *more)


@pytest.mark.parametrize(
    ("name", "bytes_"),
    [("net", 3500), pytest.param("retinanet", 20_000, marks=pytest.mark.slow), ("faster", 20_000)],
)
def test_a_run_of_a_detector(folder: Path, command: Command, name: str, bytes_: int) -> None:
    more = ("--decode", f"{folder / 'net.py'}:decode") if name == "net" else ()
    done = command("run", *arguments(folder, name, *more, "--size-budget", bytes_, *BUDGET, "--json"))
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["size_bytes"] <= bytes_
    for state in ("float", "plain", "finished"):
        assert list(summary["metrics"][state]) == ["map", "ap50", "ap75", "kl"]
        assert all(0 <= summary["metrics"][state][one] <= 100 for one in ("map", "ap50", "ap75"))
    assert summary["metrics"]["float"]["kl"] == 0 <= summary["metrics"]["finished"]["kl"]
    picture = folder / f"out-{name}" / "boxes-budget.webp"
    assert picture.stat().st_size <= MOST_BYTES
    with Image.open(picture) as opened:
        assert opened.size[0] > 500
    page = (folder / f"out-{name}" / "front.html").read_text()
    assert base64.b64encode(picture.read_bytes()).decode() in page
    assert "img-src data:" in page
    assert (summary["confidence"], summary["nms"]) == ((0.001, 0.65) if name == "net" else (0.001, 0.5))
    again = command("run", *arguments(folder, name, *more, "--size-budget", bytes_, *BUDGET, "--json"))
    assert json.loads(again.out)["metrics"] == summary["metrics"]
    assert "model-budget.safetensors is current" in again.err


def test_workers_elsewhere_send_the_picture_along(folder: Path) -> None:
    data = str(folder / "data")
    files = {"model": f"{folder / 'net.py'}:net", "decode": f"{folder / 'net.py'}:decode", "data": data}
    options = FinishOptions(**files, task="detection", samples=16, steps=0)
    loaded = Loaded(options, RunFolder(folder / "out"), Console())
    bits = dict.fromkeys(loaded.network.table.names, "W4A32")
    record, made = finish_point(sent(loaded, 1, loaded.data), "mine", bits, {}, None)
    assert record["metrics"]["finished"]["map"] >= 0
    assert sorted(made) == ["boxes-mine.webp", "model-mine.safetensors"]
    assert made["boxes-mine.webp"].startswith(b"RIFF")


@pytest.mark.slow
def test_activations_of_a_two_stage_detector(folder: Path, command: Command) -> None:
    done = command(
        "reconstruct", *arguments(folder, "faster", "--bits", "W4A8", "--samples", 16, "--steps", 2, "--json")
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["metrics"]["finished"]["kl"] > 0


def test_nothing_found_after_rounding_is_an_average_precision_of_zero(folder: Path, command: Command) -> None:
    more = ("--decode", f"{folder / 'net.py'}:nothing", "--bits", "W2", "--samples", 16, "--steps", 0, "--json")
    done = command("reconstruct", *arguments(folder, "net", *more))
    assert done.code == 0, done.err
    assert json.loads(done.out)["metrics"]["finished"]["map"] == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), ("--task detection needs --decode FILE.py:decode",)),
        (("--decode", "{}/net.py:flat"), ("net.py:flat must give boxes [1, anchors, 4]", "got [1, 16, 4]")),
        (("--decode", "{}/net.py:other"), ("has no function 'other'",)),
        (("--decode", "{}/net.py:decode", "--nms", "2"), ("--nms must be from 0 to 1, got 2.0",)),
        (("--decode", "{}/net.py:decode", "--fit", "crop"), ("--fit must be letterbox or squash, got 'crop'",)),
        (("--decode", "{}/net.py:decode", "--annotations", "{}/no.json"), ("no.json cannot be read",)),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    folder: Path, command: Command, more: tuple[str, ...], said: tuple[str, ...]
) -> None:
    given = [one.format(folder) for one in more]
    refused(command("run", *arguments(folder, "net", *given, "--size-budget", 3500, *BUDGET)), *said)


def test_categories_that_do_not_fit_the_heads(folder: Path, command: Command) -> None:
    known = annotations(folder)
    write(folder, known["images"], known["annotations"], [1, 2, 7])
    more = ("--decode", f"{folder / 'net.py'}:decode", "--size-budget", 3500, *BUDGET)
    said = "the annotations have 3 categories with ids from 1 to 7, but the network has 2 classes"
    refused(command("run", *arguments(folder, "net", *more)), said)


def test_no_box_at_all_in_the_validation_images(folder: Path, command: Command) -> None:
    write(folder, annotations(folder)["images"], [], [1, 2])
    more = ("--decode", f"{folder / 'net.py'}:decode", "--size-budget", 3500, *BUDGET)
    refused(command("run", *arguments(folder, "net", *more)), "none of the validation images has a box")


@pytest.mark.parametrize("name", ["net", "retinanet"])
def test_a_detector_that_is_taken_for_a_classifier(folder: Path, command: Command, name: str) -> None:
    given = ("--model", f"{folder / 'net.py'}:{name}", "--data", folder / "data", "--out", folder / "out")
    refused(command("run", *given, "--size-budget", 20_000, *BUDGET), "--task detection")


def test_the_layers_of_a_two_stage_detector(folder: Path, command: Command) -> None:
    done = command("layers", "--model", f"{folder / 'net.py'}:faster", "--input", "3x32x40", "--json")
    assert done.code == 0, done.err
    assert "roi_heads.box_head.fc6" in done.out


def test_no_images_are_distilled_for_a_detector(folder: Path, command: Command) -> None:
    given = ("--model", f"{folder / 'net.py'}:retinanet", "--data", "distilled", "--task", "detection")
    done = command("reconstruct", *given, "--bits", "W4", "--out", folder / "out")
    refused(done, "no images can be distilled", "give --data")


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 32, 40, generator=torch.Generator().manual_seed(seed))


def truth(count: int) -> list[dict[str, torch.Tensor]]:
    return [{"boxes": torch.tensor([[2.0, 3.0, 20.0, 24.0]]), "labels": torch.tensor([1])} for _ in range(count)]


def load(folder: Path, name: str) -> torch.nn.Module:
    scope: dict = {}  # type: ignore[type-arg]
    exec((folder / "net.py").read_text(), scope)
    made: torch.nn.Module = scope[name]()
    return made


@pytest.mark.parametrize("name", ["retinanet", "faster"])
def test_the_neural_part_and_its_selection_are_the_detector(folder: Path, name: str) -> None:
    detector = load(folder, name)
    part, x = neural_part(detector), images(3)
    assert isinstance(part, NeuralPart)
    assert set(part.state_dict()) == set(detector.state_dict())
    with torch.no_grad():
        expected = detector(list(x))
        if isinstance(part, TwoStage):
            proposals = part.proposed(x)
            found = part.detections({**part(x, proposals), "proposals": proposals})
        else:
            assert isinstance(part, OneStage)
            found = part.detections(part(x))
    assert sum(len(one["boxes"]) for one in expected) > 3
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ("boxes", "scores", "labels"))


@pytest.mark.parametrize("name", ["retinanet", pytest.param("faster", marks=pytest.mark.slow)])
def test_a_torchvision_detector_in_memory(folder: Path, name: str) -> None:
    calibration = [(images(8, seed), truth(8)) for seed in range(2)]
    validation = [(images(4, 9), truth(4))]
    options = {"samples": 16, "population": 20, "generations": 5, "steps": 2, "wbits": (4, 8)}
    front = mpsearch.search(
        load(folder, name), calibration, "300kB", validation=validation, task="detection", **options
    )
    finished = front.finish()
    assert list(finished.metrics["finished"]) == ["map", "ap50", "ap75", "kl"]
    detector = load(folder, name)
    part, x = neural_part(detector), images(2, 7)
    given = (x, part.proposed(x)) if isinstance(part, TwoStage) else (x,)
    loaded = load_packed(finished.path, model=detector)
    with torch.no_grad():
        ours, theirs = loaded(*given), finished.model(*given)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_detector_of_ones_own_in_memory(folder: Path) -> None:
    scope: dict = {}  # type: ignore[type-arg]
    exec((folder / "net.py").read_text(), scope)
    options = {"samples": 16, "population": 20, "generations": 5, "steps": 2}
    task = detection(scope["decode"])
    front = mpsearch.search(
        scope["net"](), [images(16)], "3500B", validation=[(images(4), truth(4))], task=task, **options
    )
    assert front.finish().metrics["float"]["map"] >= 0
    with pytest.raises(InputError, match="a detector's task depends on how its outputs are decoded"):
        mpsearch.search(scope["net"](), [images(16)], "3500B", task="detection", **options)


def test_a_latency_and_an_energy_budget_of_a_detector(folder: Path, command: Command) -> None:
    more = "--decode", f"{folder / 'net.py'}:decode", "--device", "bitfusion"
    limits = "--latency-budget", "9ms", "--energy-budget", "9mJ"
    done = command("run", *arguments(folder, "net", *more, *limits, *BUDGET, "--abits", 8, "--json"))
    assert done.code == 0, done.err
    assert "not counted: relu (2)" in done.err
    summary = json.loads(done.out)
    assert 0 < summary["latency_s"] <= 9e-3
    assert 0 < summary["energy_j"] <= 9e-3
