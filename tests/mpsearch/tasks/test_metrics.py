"""Metrics against figures worked out by hand, in batches of any size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hwmodel.errors import InputError
from mpsearch.tasks.metric import Metric, kl_metric, mean_metric
from mpsearch.tasks.registry import TASKS
from recon.likelihood.heads import Categorical
from recon.likelihood.likelihood import Likelihood


def measured(task: str, example: Any, *batches: tuple[Any, Any, Any]) -> dict[str, float]:
    """The metrics of a task over batches of (outputs, targets, reference)."""
    likelihood = TASKS[task].likelihood_of(example)
    metrics = TASKS[task].metrics_of(likelihood, labelled=batches[0][1] is not None)
    tallies = {metric.name: metric.start() for metric in metrics}
    for batch in batches:
        for tally in tallies.values():
            tally.add(*batch)
    return {name: tally.value() for name, tally in tallies.items()}


def scores(*classes: int) -> Tensor:
    return 3 * torch.eye(4)[list(classes)] - 1


def test_top1_counts_hits() -> None:
    first, second = scores(0, 1, 2, 3, 0), scores(1)
    found = measured(
        "classification",
        first,
        (first, torch.tensor([0, 1, 2, 0, 0]), first),
        (second, torch.tensor([3]), second),
    )
    assert found == {"top1": pytest.approx(100 * 4 / 6), "kl": 0.0}


def test_agreement_needs_no_labels() -> None:
    a, b = {"out": scores(0, 1, 2)}, {"out": scores(0, 1, 3)}
    found = measured("classification", a, (b, None, a))
    assert found["agreement"] == pytest.approx(100 * 2 / 3)
    p = scores(2).double().softmax(1)[0]
    assert found["kl"] == pytest.approx(float((p[2] - p[3]) * 3) / 3)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_decision_has_its_threshold_at_one_half(shape: tuple[int, ...]) -> None:
    logits = torch.tensor([-2.0, -0.1, 0.1, 2.0]).view(shape)
    for labels in (torch.tensor([0, 1, 1, 1]), torch.tensor([[0.0], [1.0], [1.0], [1.0]])):
        assert measured("classification", logits, (logits, labels, logits))["top1"] == 75.0
        likely = logits.sigmoid()
        assert measured("classification", likely, (likely, labels, likely))["top1"] == 75.0


def test_miou_by_hand() -> None:
    # Labels 0 0 1 1 2 255, decisions 0 1 1 1 0 3. Class 0: 1 of 3, class 1: 2 of 3, class 2: 0 of 1. Class 3 is decided
    # at the ignored pixel only, and does not count.
    maps = scores(0, 1, 1, 1, 0, 3).T.reshape(1, 4, 2, 3)
    labels = torch.tensor([[[0, 0, 1], [1, 2, 255]]], dtype=torch.uint8)
    found = measured("segmentation", maps, (maps, labels, maps))
    assert found["miou"] == pytest.approx(100 * (1 / 3 + 2 / 3 + 0) / 3)
    assert found["pixel_accuracy"] == pytest.approx(100 * 3 / 5)
    apart = [(maps[..., i : i + 1], labels[..., i : i + 1], maps[..., i : i + 1]) for i in range(3)]
    assert measured("segmentation", maps, *apart) == found
    assert measured("segmentation", maps, (maps, None, maps)) == {"agreement": 100.0, "kl": 0.0}


def test_foreground_and_background() -> None:
    logits = torch.tensor([-1.0, 1.0, 1.0, 1.0]).view(1, 1, 2, 2)
    labels = torch.tensor([0, 0, 1, 1]).view(1, 1, 2, 2)
    assert measured("segmentation", logits, (logits, labels, logits))["miou"] == pytest.approx(
        100 * (1 / 2 + 2 / 3) / 2
    )


def test_kl_of_maps_is_in_nats_per_pixel() -> None:
    a, b = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    small = measured("segmentation", a, (b, None, a))["kl"]
    known, other = (tensor.repeat(1, 1, 2, 2) for tensor in (a, b))
    assert measured("segmentation", a, (other, None, known))["kl"] == pytest.approx(small)


def test_rmse() -> None:
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
    targets = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 9.0]])
    batches = [(z[:2], targets[:2], z[:2]), (z[2:], targets[2:], z[2:])]
    assert measured("regression", z, *batches)["rmse"] == pytest.approx(math.sqrt((4 + 16) / 6))
    found = measured("regression", z, (z + 0.5, None, z))
    assert found["rmse_to_float"] == pytest.approx(0.5)
    variances = z.var(0, correction=0)
    assert found["kl"] == pytest.approx(float((0.125 / variances).sum()), rel=1e-6)
    column = z[:, :1]
    assert measured("regression", column, (column, column[:, 0] + 1, column))["rmse"] == pytest.approx(1.0)


def test_cosine() -> None:
    known = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    near = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    for targets in (None, torch.tensor([3, 4])):
        assert measured("embedding", known, (near, targets, known))["cosine"] == pytest.approx((0.5**0.5 + 1) / 2)


def test_functions_of_the_user() -> None:
    per_sample = mean_metric("off", lambda outputs, targets: (outputs - targets).abs().sum(1), higher_is_better=False)
    per_batch = mean_metric(
        "off", lambda outputs, targets: float((outputs - targets).abs().sum(1).mean()), higher_is_better=False
    )
    batches = [(torch.ones(3, 2), torch.zeros(3, 2)), (torch.ones(1, 2), torch.full((1, 2), 5.0))]
    for metric in (per_sample, per_batch):
        tally = metric.start()
        for outputs, targets in batches:
            tally.add(outputs, targets, None)
        assert tally.value() == pytest.approx((3 * 2 + 8) / 4)
        assert metric.start().value is not tally.value
    perplexity = mean_metric(
        "perplexity", lambda outputs, targets: math.log(8.0), higher_is_better=False, finish=math.exp
    )
    tally = perplexity.start()
    tally.add(torch.ones(3, 2), None, None)
    assert tally.value() == pytest.approx(8.0)


def refused(metric: Metric, match: str, outputs: Any, targets: Any = None, reference: Any = None) -> None:
    with pytest.raises(InputError, match=match) as error:
        metric.start().add(outputs, targets, reference)
    assert "\n" not in str(error.value)


def metric_of(task: str, outputs: Any) -> Metric:
    return TASKS[task].metrics_of(TASKS[task].likelihood_of(outputs), labelled=True)[0]


def test_bad_targets_are_refused_in_one_line() -> None:
    z = torch.randn(3, 4)
    top1 = metric_of("classification", z)
    refused(top1, r"labels for \[3, 1\] decisions as targets, got a list", z, [0, 1, 2])
    refused(top1, r"one label for each decision, \[3, 1\] of them, got \[2\]", z, torch.tensor([0, 1]))
    refused(
        top1,
        "whole numbers from 0 to 3, as the network has 4 classes; got values from 0 to 4",
        z,
        torch.tensor([0, 4, 1]),
    )
    refused(top1, "got values from -1 to 2", z, torch.tensor([0, -1, 2]))
    refused(top1, "whole numbers", z, torch.tensor([0.0, 0.5, 1.0]))
    refused(metric_of("classification", z[:, :1]), "from 0 to 1, .* got values from 0 to 2", z[:, :1], torch.arange(3))
    refused(metric_of("regression", z), r"shape of the outputs, \[3, 4\], got \[3\]", z, torch.ones(3))
    refused(metric_of("regression", z), r"values \[3, 4\] as targets, got a NoneType", z)
    maps = torch.randn(1, 3, 4, 4)
    refused(metric_of("segmentation", maps), r"got \[1, 8, 8\]", maps, torch.zeros(1, 8, 8))
    tally = metric_of("segmentation", maps).start()
    tally.add(maps, torch.full((1, 4, 4), 255), None)
    with pytest.raises(InputError, match="no labelled pixels"):
        tally.value()


def test_functions_that_fail_are_refused_in_one_line() -> None:
    refused(
        mean_metric("a", lambda z, y: z, higher_is_better=True),
        r"each of the 3 samples; got shape \[3, 4\]",
        torch.ones(3, 4),
    )
    refused(mean_metric("a", lambda z, y: z @ z, higher_is_better=True), "'a' raised RuntimeError: ", torch.ones(3, 4))
    refused(mean_metric("a", lambda z, y: "so", higher_is_better=True), "'a' raised ", torch.ones(3, 4))
    with pytest.raises(InputError, match="no validation samples"):
        mean_metric("a", lambda z, y: 1.0, higher_is_better=True).start().value()
    with pytest.raises(InputError, match="'targets' or 'reference', got 'labels'"):
        mean_metric("a", lambda z, y: 1.0, higher_is_better=True, against="labels")  # type: ignore[arg-type]


def test_outputs_that_are_not_finite_are_refused() -> None:
    kl = kl_metric(Likelihood((Categorical(),))).start()
    kl.add(torch.ones(4, 3), None, torch.ones(4, 3))
    broken = torch.ones(5, 3)
    broken[2, 1] = math.nan
    with pytest.raises(InputError, match=r"1 of a batch of 5 .*first: sample 6"):
        kl.add(broken, None, torch.ones(5, 3))
