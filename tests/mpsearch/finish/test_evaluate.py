"""Accuracy and divergence, against sums written out."""

import math

import pytest
import torch
from torch import Tensor, nn

from hwmodel.errors import InputError
from mpsearch.finish.evaluate import evaluate, logits, score
from mpsearch.sources.split import Normalization, Split

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def _images(count: int, labelled: bool = True) -> Split:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return Split.of(x, torch.arange(count) % 5 if labelled else None, Normalization(MEAN, STD))


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


def test_logits_do_not_depend_on_the_batch_and_serve_autograd() -> None:
    model, images = _model(), _images(23)
    outputs = logits(model, images, batch=7)
    pixels = images.stored.leaves[0].permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    expected = model.double()((pixels - mean) / std)
    torch.testing.assert_close(outputs.double(), expected, atol=1e-5, rtol=1e-5)
    assert outputs.dtype == torch.float32
    assert not outputs.is_inference()


def test_top1_counts_hits() -> None:
    outputs = torch.eye(4)[torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])]
    labels = torch.tensor([0, 1, 2, 3, 0, 0, 0, 0])
    found = score(outputs, labels)
    assert found.top1 == pytest.approx(62.5)
    assert found.kl_nats is None
    assert found.count == 8


def test_kl_is_the_sum_of_its_definition() -> None:
    p, q = (0.7, 0.2, 0.1), (0.5, 0.25, 0.25)
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    reference = torch.log(torch.tensor([p, q])) + 3  # logits are free up to a constant
    outputs = torch.log(torch.tensor([q, q]))
    found = score(outputs, None, reference)
    assert found.kl_nats == pytest.approx(expected / 2, rel=1e-6)  # the second image agrees
    assert found.top1 is None


def test_a_model_does_not_diverge_from_itself() -> None:
    model, images = _model(), _images(9, labelled=False)
    found = evaluate(model, images, logits(model, images), batch=4)
    assert found.kl_nats == pytest.approx(0.0, abs=1e-12)
    assert found.top1 is None
    assert found == evaluate(model, images, logits(model, images), batch=4)


def test_nan_logits_are_refused() -> None:
    def broken(x: Tensor) -> Tensor:
        outputs = torch.zeros(len(x), 5)
        outputs[2] = math.nan
        return outputs

    with pytest.raises(InputError, match=r"1 of 6 images .*first: image 2"):
        evaluate(broken, _images(6))
