"""The embedded data set and the network trained on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

from mpsearch.sources import demo
from mpsearch.sources.split import Normalization

PINNED = {
    "train": "82b799d9da97d7f9eb2fc4cfdecac13e0b1c034b5b8d48f39e961601af57bf0d",
    "calib": "0297c356f9a3852266fb4aaa9746a6462f71f96537bfdefa062841f924845803",
    "val": "7cbee0e329e29fa807e4c1468fe91c0bd8ac2b21da956e395ab8eb8fa6c8b972",
}


@pytest.mark.parametrize("split", ["train", "calib", "val"])
def test_the_images_are_the_same_everywhere(split: demo.Split) -> None:
    images, _ = demo.render(split, 8)
    coarse = images.reshape(8, 6, 8, 6, 8, 3).mean((2, 4), dtype=np.float64)
    # Coarse, because the last bit of a pixel may differ between machines.
    assert hashlib.sha256(np.rint(coarse / 4).astype(np.uint8).tobytes()).hexdigest() == PINNED[split]


def test_shapes_and_types() -> None:
    images, labels = demo.render("val", 5)
    channels, height, width = demo.INPUT_SIZE
    assert images.shape == (5, height, width, channels)
    assert labels.shape == (5,)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64


def test_the_first_images_do_not_depend_on_the_count() -> None:
    few, few_labels = demo.render("calib", 10)
    many, many_labels = demo.render("calib", 300)  # more than are rendered at once
    assert np.array_equal(few, many[:10])
    assert np.array_equal(few_labels, many_labels[:10])
    assert np.array_equal(demo.render("calib", 260)[0], many[:260])


def test_splits_and_seeds_differ() -> None:
    first = [demo.render("train", 4)[0], demo.render("calib", 4)[0], demo.render("val", 4)[0]]
    first.append(demo.render("calib", 4, seed=1)[0])
    assert len({images.tobytes() for images in first}) == 4


def test_classes_take_turns() -> None:
    _, labels = demo.render("val", 200)
    counts = np.bincount(labels, minlength=len(demo.CLASSES))
    assert counts.min() == 3
    assert counts.max() == 4
    assert len(set(labels[:64].tolist())) == len(demo.CLASSES) == len(set(demo.CLASSES)) == 64


def test_contact_sheet(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    demo.contact_sheet(path)
    with Image.open(path) as sheet:
        sheet.load()
        assert (sheet.format, sheet.size) == ("PNG", (1500, 720))
        colours = np.unique(np.asarray(sheet.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 10_000  # not a blank page


def test_the_weights_are_small_and_half_precision() -> None:
    state = load_file(demo.weights_path())
    assert demo.weights_path().stat().st_size < 6_000_000
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}


def test_the_network_solves_the_task() -> None:
    about = json.loads(demo.weights_path().with_suffix(".json").read_text(encoding="utf-8"))
    assert tuple(about["input_size"]) == demo.INPUT_SIZE
    assert (tuple(about["mean"]), tuple(about["std"])) == (demo.MEAN, demo.STD)
    model = torchvision.models.mobilenet_v2(num_classes=about["classes"]).eval()
    missing, unexpected = model.load_state_dict(
        {name: tensor.float() for name, tensor in load_file(demo.weights_path()).items()}, strict=False
    )
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    images, labels = demo.render("val", 512)
    with torch.inference_mode():
        outputs = model(Normalization(demo.MEAN, demo.STD)(torch.from_numpy(images)))
    top1 = 100 * np.mean(outputs.argmax(1).numpy() == labels)
    assert 85 <= top1 <= 95
    assert abs(top1 - about["top1_val_percent"]) < 4  # 512 images stand for 2000
