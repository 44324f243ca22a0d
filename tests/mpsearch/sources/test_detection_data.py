"""Folders of images with boxes: COCO's and YOLO's layouts, letterboxes, and every way in which they do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hwmodel.errors import InputError
from mpsearch.sources.data import DataSource
from mpsearch.sources.detection_data import BoxOptions, load_detection
from mpsearch.sources.expected import beside, expected
from mpsearch.sources.split import Normalization

PLAIN = Normalization((0.0,) * 3, (1.0,) * 3)


def load(folder: Path, size: tuple[int, ...] | None = (3, 64, 64), **changed: Any) -> DataSource:
    options: dict[str, Any] = {
        "given": True, "normalization": PLAIN, "any_size": False, "calib_samples": 16, "val_samples": None, "seed": 0,
    } | changed  # fmt: skip
    return load_detection(folder, options.pop("boxes", BoxOptions()), input_size=size, **options)


def paint(path: Path, size: tuple[int, int] = (32, 32), box: tuple[int, int, int, int] | None = None) -> None:
    """An image of `size` (width, height), black but for a white box x1 y1 x2 y2."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    if box is not None:
        pixels[box[1] : box[3], box[0] : box[2]] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def coco(folder: Path, boxes: list[dict[str, Any]] | None = None, size: tuple[int, int] = (32, 32)) -> dict[str, Any]:
    """17 images to calibrate on and two to measure on, with COCO's JSON."""
    for index in range(17):
        paint(folder / "calib" / f"{index}.png", size)
    known = [{"image_id": 7, "category_id": 5, "bbox": [8, 4, 16, 8], "area": 99, "iscrowd": 0}]
    data: dict[str, Any] = {"images": [], "annotations": known if boxes is None else boxes}
    data["categories"] = [{"id": 9, "name": "cat"}, {"id": 5, "name": "dog"}]
    for image in (7, 8):
        paint(folder / "val" / f"{image}.png", size, (8, 4, 24, 12) if image == 7 else None)
        data["images"].append({"id": image, "file_name": f"{image}.png", "width": size[0], "height": size[1]})
    for number, one in enumerate(data["annotations"]):
        one["id"] = number
    (folder / "instances_val.json").write_text(json.dumps(data))
    return data


def test_a_folder_of_coco(tmp_path: Path) -> None:
    coco(tmp_path)
    data = load(tmp_path, (3, 32, 32))
    assert data.val is not None
    assert (len(data.calib), len(data.val), data.calib.targets) == (16, 2, None)
    first, second = data.val.targets
    assert first["boxes"].tolist() == [[8, 4, 24, 12]]
    assert (first["labels"].tolist(), first["categories"].tolist()) == ([0], [5, 9])  # ids, ascending
    assert (first["area"].tolist(), first["iscrowd"].tolist()) == ([99], [0])
    assert second["boxes"].shape == (0, 4)


@pytest.mark.parametrize("fit", ["letterbox", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (40, 20), (30, 60), (100, 50)])
def test_boxes_go_where_their_images_go(tmp_path: Path, fit: str, size: tuple[int, int]) -> None:
    coco(tmp_path, size=size)
    data = load(tmp_path, (3, 64, 96), boxes=BoxOptions(fit=fit))  # type: ignore[arg-type]
    assert data.val is not None
    pixels = data.val.stored.leaves[0][0]
    assert pixels.shape == (64, 96, 3)
    inside = (pixels[..., 0] > 127).nonzero()  # the margin has 114
    y1, x1 = inside.min(0).values.tolist()
    y2, x2 = (inside.max(0).values + 1).tolist()
    (found,) = data.val.targets[0]["boxes"].tolist()
    assert found == pytest.approx([x1, y1, x2, y2], abs=1.0)
    if fit == "letterbox":
        scale = min(96 / size[0], 64 / size[1])
        assert found == pytest.approx([8 * scale, 4 * scale, 24 * scale, 12 * scale], rel=0.03)


def test_annotations_in_other_pixels_than_the_images(tmp_path: Path) -> None:
    data = coco(tmp_path)
    for image in data["images"]:
        image |= {"width": 320, "height": 640}
    (tmp_path / "instances_val.json").write_text(json.dumps(data))
    val = load(tmp_path, (3, 32, 32)).val
    assert val is not None
    assert val.targets[0]["boxes"].tolist() == [[0.8, 0.2, 2.4, pytest.approx(0.6)]]


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ({"bbox": [8, 4, 0, 8]}, False),
        ({"bbox": [8, 4, 3, -1]}, False),
        ({"bbox": [32, 4, 5, 5]}, False),
        ({"bbox": [-9, 4, 5, 5]}, False),
        ({"bbox": [-3, 4, 5, 5]}, True),  # COCO's metric takes boxes as they are
        ({"bbox": [8, 4, 3, 3], "iscrowd": 1}, True),
        ({"bbox": [8, 4, 3, 3], "difficult": 1}, True),
    ],
)
def test_boxes_outside_of_no_size_of_crowds_and_difficult_ones(tmp_path: Path, box: dict[str, Any], kept: bool) -> None:
    coco(tmp_path, [{"image_id": 7, "category_id": 5, **box}])
    data = load(tmp_path, (3, 32, 32))
    assert data.val is not None
    target = data.val.targets[0]
    assert len(target["boxes"]) == kept
    assert any("1 boxes of no size or outside their image are left out" in note for note in data.notes) is not kept
    assert target["iscrowd"].tolist() == ([int(len(box) > 1)] if kept else [])


def test_images_of_the_training_list_calibrate_and_its_boxes_are_not_read(tmp_path: Path) -> None:
    data = coco(tmp_path / "coco")
    for index in range(17):
        paint(tmp_path / "images" / f"t{index}.png")
    for image in (7, 8):
        paint(tmp_path / "images" / f"{image}.png")
    images = [{"id": index, "file_name": f"t{index}.png"} for index in range(17)]
    (tmp_path / "instances_train.json").write_text(json.dumps({"images": images, "annotations": "not to be read"}))
    (tmp_path / "instances_val.json").write_text(json.dumps(data))
    found = load(tmp_path, (3, 32, 32))
    assert found.val is not None
    assert "16 of 17 calibration images, 2 of 2 validation images" in found.source


def test_without_annotations_there_is_nothing_to_find(tmp_path: Path) -> None:
    coco(tmp_path)
    (tmp_path / "instances_val.json").unlink()
    data = load(tmp_path, (3, 32, 32))
    assert data.val is not None
    assert not data.val.labelled
    assert any("no annotations found" in note for note in data.notes)


def test_one_image_to_measure_on_and_one_with_four_channels(tmp_path: Path) -> None:
    data = coco(tmp_path)
    data["images"] = data["images"][:1]
    (tmp_path / "val" / "8.png").unlink()
    (tmp_path / "instances_val.json").write_text(json.dumps(data))
    Image.new("RGBA", (32, 32), (1, 2, 3, 4)).save(tmp_path / "val" / "7.png")
    val = load(tmp_path, (3, 32, 32)).val
    assert val is not None
    assert val.stored.leaves[0][0, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("size", "goes_in"), [((64, 32), (32, 64)), ((40, 20), (48, 48))])
def test_images_of_one_size_go_in_as_they_are_where_maps_fit(
    tmp_path: Path, size: tuple[int, int], goes_in: tuple[int, int]
) -> None:
    coco(tmp_path, size=size)
    data = load(tmp_path, (3, 48, 48), given=False)
    assert data.calib.stored.leaves[0].shape[1:3] == goes_in
    assert load(tmp_path, (3, 48, 48), given=True).calib.stored.leaves[0].shape[1:3] == (48, 48)
    assert load(tmp_path, (3, 48, 48), given=False, any_size=True).calib.stored.leaves[0].shape[1:3] == size[::-1]


def test_images_without_annotations_are_left_out_and_noted(tmp_path: Path) -> None:
    coco(tmp_path)
    paint(tmp_path / "val" / "more.png")
    data = load(tmp_path, (3, 32, 32))
    assert data.val is not None
    assert len(data.val) == 2
    assert any("1 images in" in note and "have no annotations" in note for note in data.notes)


def damaged(key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: data | {key: value}


def without(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != key}


def first(what: str, key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The first record of a kind says something else."""
    return lambda data: data | {what: [data[what][0] | {key: value}, *data[what][1:]]}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (damaged("categories", []), "names no categories"),
        (damaged("annotations", None), "annotations must be a list of objects, got NoneType"),
        (damaged("images", []), "lists no images"),
        (damaged("images", [{"id": 1, "file_name": "other.png"}]), r"lists 1 images, none of which is in .*other\.png"),
        (
            lambda data: data | {"images": [*data["images"], {"id": 1, "file_name": "gone.png"}]},
            r"lists 3 images, 1 of which are not in .* \(first: gone\.png\); add them",
        ),
        (damaged("annotations", [{"id": 3, "image_id": 99}]), "category_id must be a whole number, got None"),
        (
            damaged("annotations", [{"id": 3, "image_id": 99, "category_id": 5}]),
            "annotation 3 is of image 99, which the file does not list",
        ),
        (
            damaged("annotations", [{"id": 3, "image_id": 7, "category_id": 6}]),
            "annotation 3 is of category 6, which the file does not list",
        ),
        (
            damaged("annotations", [{"id": 3, "image_id": 7, "category_id": 5, "bbox": [1, 2, 3]}]),
            r"annotation 3 needs bbox \[x, y, width, height\], got \[1, 2, 3\]",
        ),
        (lambda data: {"boxes": []}, "holds no images: expected COCO's JSON"),
        *[
            (lambda data, w=what, k=key: data | {w: [without(data[w][0], k), *data[w][1:]]}, match)
            for what, key, match in (
                ("images", "id", "id must be a whole number, got None"),
                ("images", "file_name", "needs its file_name, got None"),
                ("categories", "id", "id must be a whole number, got None"),
                ("annotations", "image_id", "image_id must be a whole number, got None"),
                ("annotations", "category_id", "category_id must be a whole number, got None"),
            )
        ],
        (lambda data: data | {"images": 2 * data["images"]}, "images must have ids of their own, got 7 2 times"),
        (
            lambda data: data | {"categories": 3 * data["categories"]},
            "categories must have ids of their own, .* 3 times",
        ),
        (first("images", "id", True), "id must be a whole number, got True"),
        (first("images", "id", 2**64), "id must be a whole number"),
        (first("images", "file_name", "../secret.png"), r"'\.\./secret\.png' leads out of the folder"),
        (first("images", "file_name", "/etc/passwd"), "'/etc/passwd' leads out of the folder"),
        (first("annotations", "area", "large"), "annotation .* needs its area in pixels, got 'large'"),
        (first("annotations", "area", float("nan")), "cannot be read .*NaN"),
    ],
)
def test_damaged_annotations_are_refused_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], match: str
) -> None:
    data = change(coco(tmp_path))
    (tmp_path / "instances_val.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=match) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "nowhere")
    coco(tmp_path)
    (tmp_path / "instances_val2017.json").write_text("{}")
    with pytest.raises(InputError, match=r"has several annotations .* say --annotations FILE"):
        load(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json cannot be read"):
        load(tmp_path, boxes=BoxOptions(tmp_path / "broken.json"))
    assert load(tmp_path, boxes=BoxOptions(tmp_path / "instances_val.json")).val is not None


def yolo(folder: Path, data: str | None, lines: str = "1 0.5 0.25 0.5 0.25\n") -> None:
    for index in range(17):
        paint(folder / "images" / "train" / f"{index}.png")
    for name in ("a", "b"):
        paint(folder / "images" / "val" / f"{name}.png")
    (folder / "labels" / "val").mkdir(parents=True)
    (folder / "labels" / "val" / "a.txt").write_text(lines)
    if data is not None:
        (folder / "data.yaml").write_text(data)


@pytest.mark.parametrize(
    "data",
    [
        None,
        "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n",
        "train: ../images/train\nval: [../images/val]\nnames: {0: cat, 1: dog}\n",
    ],
)
def test_a_folder_of_yolo(tmp_path: Path, data: str | None) -> None:
    yolo(tmp_path, data, "1 0.5 0.25 0.5 0.25\n0 0.25 0.5 0.5 0.75 0.25 0.75\n0 0.5 0.5 0 0\n")
    found = load(tmp_path, (3, 32, 32))
    assert found.val is not None
    target = found.val.targets[0]
    assert target["boxes"].tolist() == [[8, 4, 24, 12], [8, 16, 16, 24]]  # the second is a polygon
    assert (target["labels"].tolist(), target["categories"].tolist()) == ([1, 0], [0, 1])
    assert found.val.targets[1]["boxes"].shape == (0, 4)
    assert any("1 of 2 validation images have no label file" in note for note in found.notes)
    assert any("1 boxes of no size" in note for note in found.notes)


@pytest.mark.parametrize(
    ("data", "lines", "match"),
    [
        ("[", "", r"data\.yaml cannot be read"),
        ("- 1", "", "must hold train, val and names, got a list"),
        ("train: nowhere\n", "", "names nowhere, but there is no"),
        ("names: 5.5\n", "", r"names must be a list of classes, got 5\.5"),
        (
            "names: [cat]\n",
            "1 0.5 0.5 0.1 0.1",
            r"a\.txt, line 1: expected class x y width height, with a class below 1",
        ),
        ("names: [cat]\n", "0 0.5 0.5", "line 1: expected class x y width height"),
        ("names: [cat]\n", "\n0 x 0.5 0.1 0.1", "line 2: expected class x y width height"),
    ],
)
def test_damaged_yolo_folders_are_refused_in_one_line(tmp_path: Path, data: str, lines: str, match: str) -> None:
    yolo(tmp_path, data, lines)
    with pytest.raises(InputError, match=match) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_the_json_beside_the_weights_says_bgr(tmp_path: Path) -> None:
    said = {"mean": [0, 0, 0], "std": [1, 1, 1], "channels": "BGR, 0..255"}
    (tmp_path / "net.json").write_text(json.dumps(said))
    takes = expected(("net.json", beside(tmp_path / "net.json")))
    assert takes.normalization == Normalization((0.0,) * 3, (1.0,) * 3, bgr=True)
    assert takes.note.endswith("channels BGR: from net.json")
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8).expand(1, 2, 2, 3)
    assert (takes.normalization(pixels)[0, :, 0, 0] * 255).tolist() == [30, 20, 10]
