"""Detections against torchvision and pycocotools, and where a detector's outputs say what by what decodes them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from hwmodel.errors import InputError
from mpsearch.tasks.average_precision import average_precision
from mpsearch.tasks.boxes import Detect, Found, Suppression, true_boxes
from mpsearch.tasks.detection import detection
from mpsearch.tasks.registry import load_detection_task, load_task
from recon.likelihood.cells import Cells, Channels

PLAIN = Suppression()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes(count: int, seed: int, side: float = 100.0) -> Tensor:
    corner, size = (
        side * torch.rand(count, 2, generator=generator(seed)),
        torch.rand(count, 2, generator=generator(-~seed)),
    )
    return torch.cat([corner, corner + 5 + side / 2 * size], 1).double()


def images(count: int, classes: int = 4) -> tuple[list[Found], list[Found]]:
    """Random detections, most of them near random true boxes, some of which are crowds."""
    found, truth = [], []
    for image in range(count):
        rng = np.random.default_rng(image)
        known = boxes(int(rng.integers(0, 12)), image + 1000)
        labels = torch.from_numpy(rng.integers(0, classes, len(known)))
        crowd = torch.from_numpy((rng.random(len(known)) < 0.15).astype(np.int64))
        area = (known[:, 2:] - known[:, :2]).prod(1) * 0.7  # of the object, not of its box
        truth.append({"boxes": known, "labels": labels, "area": area, "iscrowd": crowd})
        near = known + torch.from_numpy(rng.normal(0, 2, known.shape))
        others = boxes(8, image)
        found.append(
            {
                "boxes": torch.cat([near, others]),
                "labels": torch.cat([labels, torch.from_numpy(rng.integers(0, classes, 8))]),
                "scores": torch.from_numpy(rng.random(len(near) + 8)),
            }
        )
    return found, truth


def by_pycocotools(found: list[Found], truth: list[Found]) -> list[float]:
    coco, evaluate = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")

    def records(part: list[Found], *more: str) -> list[dict[str, Any]]:
        rows = []
        for image, one in enumerate(part):
            for at, (x1, y1, x2, y2) in enumerate(one["boxes"].tolist()):
                row = {"image_id": image, "category_id": int(one["labels"][at]), "bbox": [x1, y1, x2 - x1, y2 - y1]}
                rows.append(
                    row | {name.removesuffix("s"): one[name][at].item() for name in more} | {"id": len(rows) + 1}
                )
        return rows

    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO()
        known.dataset = {
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": label} for label in range(4)],
            "annotations": records(truth, "area", "iscrowd"),
        }
        known.createIndex()
        done = evaluate.COCOeval(known, known.loadRes(records(found, "scores")), "bbox")
        done.evaluate()
        done.accumulate()
        done.summarize()
    return [100 * float(value) for value in done.stats[:3]]


def test_average_precision_is_pycocotools_to_the_last_digit() -> None:
    found, truth = images(30)
    ours = average_precision(found, truth)
    assert 10 < ours[0] < ours[1] < 100
    assert list(ours) == pytest.approx(by_pycocotools(found, truth), abs=1e-10)


def test_perfect_detections_have_100_and_none_at_all_have_0() -> None:
    _, truth = images(10)
    exact = [{**one, "scores": torch.ones(len(one["labels"]))} for one in truth]
    assert average_precision(exact, truth) == (100.0, 100.0, 100.0)
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)} for _ in truth]
    assert average_precision(nothing, truth) == (0.0, 0.0, 0.0)
    with pytest.raises(InputError, match="none of the validation images has a box"):
        average_precision(nothing, [{key: value[:0] for key, value in one.items()} for one in truth])


def test_a_class_that_is_never_right_counts_as_0_and_one_that_is_nowhere_does_not_count() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 80.0, 80.0]])
    truth = true_boxes([{"boxes": box, "labels": torch.tensor([0, 1])}], 1)
    found = [{"boxes": box, "labels": torch.tensor([0, 2]), "scores": torch.tensor([0.9, 0.9])}]
    assert average_precision(found, truth) == (50.0, 50.0, 50.0)


def test_suppression_is_by_class_and_has_the_likeliest_class_of_a_box() -> None:
    given = boxes(200, 1, side=30.0).float()
    scores = torch.rand(200, 3, generator=generator(2)) ** 2
    found = Suppression(confidence=0.2, overlap=0.5, most=40)(given, scores)
    best, labels = scores.max(1)
    sure = best > 0.2
    kept = batched_nms(given[sure], best[sure], labels[sure], 0.5)[:40]
    assert torch.equal(found["boxes"], given[sure][kept])
    assert torch.equal(found["labels"], labels[sure][kept])
    assert bool((found["scores"].diff() <= 0).all())


def test_boxes_that_are_no_numbers_are_no_detections() -> None:
    given = torch.tensor([[0.0, 0.0, float("inf"), 5.0], [0.0, 0.0, 5.0, 5.0]])
    assert torch.equal(PLAIN(given, torch.ones(2, 1))["boxes"], given[1:])


def rows(z: Tensor) -> Tensor:
    return z.flatten(2).transpose(1, 2)


def grid(maps: list[Tensor]) -> Tensor:
    """The centre of every cell, in pixels of an input of 32 pixels."""
    places = []
    for z in maps:
        side, count = 32 / z.shape[3], z.shape[3]
        y, x = torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
        places.append(torch.stack([x.flatten(), y.flatten()], 1) * side + side / 2)
    return torch.cat(places)


def yolox(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    z = torch.cat([rows(one) for one in maps], 1)
    centre, half = grid(maps) + 4 * z[..., :2], 2 * z[..., 2:4].exp()
    return torch.cat([centre - half, centre + half], 2), z[..., 4:5].sigmoid() * z[..., 5:].sigmoid()


def fastestdet(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Objectness first, then the box, then a softmax over classes."""
    z = torch.cat([rows(one) for one in maps], 1)
    centre, half = grid(maps) + z[..., 1:3].tanh(), 8 * z[..., 3:5].sigmoid()
    return torch.cat([centre - half, centre + half], 2), z[..., :1] ** 0.6 * z[..., 5:] ** 0.4


def without_objectness(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    z = torch.cat([rows(one) for one in maps], 1)
    return torch.cat([grid(maps) - z[..., 3:5].exp(), grid(maps) + z[..., 5:7].exp()], 2), z[..., :3].softmax(2)


def outputs(width: int, *, probabilities: bool = False) -> list[Tensor]:
    made = [torch.randn(3, width, side, side, generator=generator(side)) for side in (4, 2)]
    for z in made if probabilities else []:
        z[:, 0], z[:, 5:] = z[:, 0].sigmoid(), z[:, 5:].softmax(1)
    return made


def on(first: int, count: int | None = None) -> Channels:
    return Channels(("0", "1"), first, count)


@pytest.mark.parametrize(
    ("decode", "made", "expected"),
    [
        (yolox, outputs(9), Cells(on(5, 4), on(0, 4), on(4, 1))),
        (
            fastestdet,
            outputs(9, probabilities=True),
            Cells(on(5, 4), on(1, 4), on(0, 1), None, "exclusive", "probabilities", "probabilities"),
        ),
        (yolox, outputs(6), Cells(on(5, 1), on(0, 4), on(4, 1))),
        (without_objectness, outputs(7), Cells(on(0, 3), on(3, 4), kind="exclusive")),
    ],
)
def test_what_channels_mean_is_found_in_decode(
    decode: Callable[[Any], Any], made: list[Tensor], expected: Cells
) -> None:
    (found,) = detection(decode).likelihood_of(made).heads
    assert isinstance(found, Cells)
    for name in ("classes", "boxes", "objectness", "quality", "kind", "form", "objectness_form", "weighting"):
        assert getattr(found, name) == getattr(expected, name), name


def test_sigma_moves_an_edge_by_a_tenth_of_the_box() -> None:
    made = [torch.zeros(1, 7, 1, 1)]

    def decode(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        z = rows(maps[0])
        centre, half = 8 * z[..., :2], 16 * z[..., 2:4].exp()
        return torch.cat([centre - half, centre + half], 2), z[..., 4:].sigmoid()

    (found,) = detection(decode).likelihood_of(made).heads
    assert isinstance(found, Cells)
    assert found.sigma == pytest.approx((0.4, 0.4, 0.2, 0.2))  # a box of 32 pixels: 3.2 = 8 · 0.4 = 16 · 0.2


def suppressed(maps: list[Tensor]) -> list[Found]:
    return [PLAIN(*pair) for pair in zip(*yolox(maps), strict=True)]


def changed(boxes: Callable[[Tensor], Any], scores: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    """A decode whose boxes (N, 20, 4) and scores (N, 20, 4) are made something else."""

    def decode(maps: list[Tensor]) -> Any:
        first, second = yolox(maps)
        return boxes(first), scores(second)

    return decode


def same(z: Tensor) -> Tensor:
    return z


@pytest.mark.parametrize(
    ("decode", "width", "match"),
    [
        (lambda maps: yolox(maps)[0], 9, r"must give boxes \[1, anchors, 4\] .* got \[1, 20, 4\]"),
        (lambda maps: yolox(maps)[::-1], 9, "decode does not say where boxes and classes are: channels"),
        (changed(same, lambda z: z[:, :5]), 9, r"and scores \[1, anchors, classes\], got \[1, 20, 4\], \[1, 5, 4\]"),
        (changed(lambda z: z[..., :2], same), 9, r"got \[1, 20, 2\], \[1, 20, 4\]"),
        (changed(lambda z: z[:0], lambda z: z[:0]), 9, r"got \[0, 20, 4\], \[0, 20, 4\]"),
        (lambda maps: None, 9, "got a NoneType"),
        (lambda maps: 1 / 0, 9, "decode raised ZeroDivisionError"),
        (suppressed, 9, "gives finished detections"),
        (changed(Tensor.detach, Tensor.detach), 9, "must be differentiable"),
        (changed(lambda z: z.repeat(1, 3, 1), lambda z: z.repeat(1, 3, 1)), 9, "one box for each position"),
        (changed(same, lambda z: z.mean(2, keepdim=True).repeat(1, 1, 3)), 9, "0 of 3 classes"),
        (yolox, 0, r"reads maps \[N, channels, …\].* \[3, 9\]\]; say in FILE"),
    ],
)
def test_a_decode_that_does_not_fit_is_refused_in_one_line(
    decode: Callable[[Any], Any], width: int, match: str
) -> None:
    made = outputs(width) if width else [torch.zeros(3, 9, 4, 4), torch.zeros(3, 9)]
    with pytest.raises(InputError, match=match) as error:
        detection(decode).likelihood_of(made)
    assert "\n" not in str(error.value)


def test_metrics_of_detections_and_finished_detections_alike() -> None:
    made = outputs(9)
    targets = [{"boxes": boxes(4, 5 + i), "labels": torch.arange(4)} for i in range(3)]
    values = []
    for decode in (yolox, lambda maps: [PLAIN(*pair) for pair in zip(*yolox(maps), strict=True)]):
        task = detection(decode, PLAIN, detection(yolox).likelihood_of(made))
        metrics = task.metrics_of(detection(yolox).likelihood_of(made), True)
        assert [metric.name for metric in metrics] == ["map", "ap50", "ap75", "kl"]
        tallies = [metric.start() for metric in metrics]
        for tally in tallies:
            tally.add(made, targets, made)
        values.append([tally.value() for tally in tallies])
    assert values[0] == values[1]
    assert values[0][3] == 0
    assert [metric.name for metric in task.metrics_of(detection(yolox).likelihood_of(made), False)] == ["kl"]


def test_the_last_detections_are_kept_for_the_next_metric() -> None:
    calls = []

    def counted(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return yolox(maps)

    detect, made = Detect(counted, PLAIN), outputs(9)
    assert detect(made) is detect(made)
    detect(outputs(9))
    assert len(calls) == 2


BOX = torch.tensor([[1.0, 2.0, 3.0, 4.0]])


@pytest.mark.parametrize(
    ("targets", "match"),
    [
        (None, "a dict of boxes"),
        ([{"boxes": BOX, "labels": torch.zeros(1)}] * 2, "for each of 1 images"),
        ([{"boxes": BOX}], "must hold tensors boxes and labels, got boxes"),
        ([{"boxes": BOX, "labels": torch.zeros(2)}], r"boxes \[M, 4\] and labels \[M\], got \[1, 4\], \[2\]"),
        ([{"boxes": BOX.flip(1), "labels": torch.zeros(1)}], r"x1 < x2 and y1 < y2, got \[4.0, 3.0, 2.0, 1.0\]"),
        ([{"boxes": BOX, "labels": torch.tensor([4])}], "labels from 4 to 4, but the network has 4 classes"),
        (
            [{"boxes": BOX, "labels": torch.tensor([0]), "categories": torch.tensor([1, 2])}],
            "2 categories with ids from 1 to 2, but the network has 4 classes",
        ),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: Any, match: str) -> None:
    (metric, *_) = detection(yolox).metrics_of(detection(yolox).likelihood_of(outputs(9)), True)
    made = [z[:1] for z in outputs(9)]
    with pytest.raises(InputError, match=match):
        metric.start().add(made, targets, made)


@pytest.mark.parametrize(
    ("ids", "label", "expected"),
    [
        ([2, 5, 7, 11], 2, 2),  # as many categories as classes: by rank
        ([1, 3], 1, 3),  # class 0 is background, and the ids of the others are classes
    ],
)
def test_categories_are_classes_by_rank_or_by_their_ids(ids: list[int], label: int, expected: int) -> None:
    target = {"boxes": BOX, "labels": torch.tensor([label]), "categories": torch.tensor(ids)}
    (one,) = true_boxes([target], 1, 4)
    assert one["labels"].tolist() == [expected]


def test_the_task_needs_a_decode() -> None:
    with pytest.raises(InputError, match="--task detection needs --decode"):
        load_detection_task(None, PLAIN)
    with pytest.raises(InputError, match=r"--decode must be FILE\.py:function .* got 'yolo'"):
        load_detection_task("yolo", PLAIN)
    with pytest.raises(InputError, match="has no function 'decide'"):
        load_detection_task(f"{__file__}:decide", PLAIN)
    with pytest.raises(InputError, match=r"detection or FILE\.py:task|detection, or FILE\.py:task"):
        load_task("detecting")
