"""What the built-in tasks recognise in outputs, and how they refuse the rest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hwmodel.errors import InputError
from mpsearch.tasks.metric import mean_metric
from mpsearch.tasks.registry import TASKS, load_task
from mpsearch.tasks.task import Task
from recon.likelihood.heads import Bernoulli, Categorical, Gaussian, Head
from recon.likelihood.likelihood import Likelihood


def z(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def head(task: str, outputs: Any) -> Head:
    (found,) = TASKS[task].likelihood_of(outputs).heads
    return found


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (z(8, 5), Categorical()),
        (z(8, 5, 1, 1), Categorical()),
        ((z(8, 5),), Categorical("0")),
        ({"out": z(8, 5), "aux": z(8, 5)}, Categorical("out")),
        ({"head": {"logits": z(8, 5)}, "features": z(8, 64)}, Categorical("head.logits")),
        ((z(8, 64, 7, 7), z(8, 5), torch.ones(8, 5, dtype=torch.int64)), Categorical("1")),
        (z(8, 5).softmax(1), Categorical(form="probabilities")),
        (z(8, 1000).softmax(1).bfloat16(), Categorical(form="probabilities")),
        (z(8, 5).log_softmax(1), Categorical(form="log-probabilities")),
        (z(8, 1), Bernoulli()),
        (z(8), Bernoulli(dim=None)),
        (z(8, 1).sigmoid(), Bernoulli(form="probabilities")),
        ({"p": z(8).sigmoid()}, Bernoulli("p", dim=None, form="probabilities")),
        (torch.zeros(8, 5), Categorical()),
    ],
)
def test_classification_finds_the_scores_and_their_form(outputs: Any, expected: Head) -> None:
    assert head("classification", outputs) == expected


@pytest.mark.parametrize("form", ["softmax", "log_softmax"])
def test_the_form_of_the_scores_does_not_change_the_divergence(form: str) -> None:
    a, b = z(8, 5).double(), z(8, 5).double() * 1.1
    plain = TASKS["classification"].likelihood_of(a).divergence({"": a}, {"": b})
    a, b = getattr(a, form)(1), getattr(b, form)(1)
    assert torch.allclose(TASKS["classification"].likelihood_of(a).divergence({"": a}, {"": b}), plain)


@pytest.mark.parametrize(
    ("task", "outputs", "expected"),
    [
        ("segmentation", z(2, 21, 4, 4), Categorical()),
        ("segmentation", {"out": z(2, 21, 4, 4), "aux": z(2, 21, 4, 4)}, Categorical("out")),
        ("segmentation", z(2, 3, 4, 4).softmax(1), Categorical(form="probabilities")),
        ("segmentation", z(2, 1, 4, 4), Bernoulli()),
        ("segmentation", z(2, 1, 4, 4).sigmoid(), Bernoulli(form="probabilities")),
        ("embedding", torch.tensor([[3.0, 4.0], [0.0, 5.0]]), Gaussian(sigma=5.0)),
        (
            "embedding",
            {"last_hidden_state": z(2, 7, 2), "pooler_output": torch.tensor([[1.0, 0.0], [0.0, 7.0]])},
            Gaussian("pooler_output", 5.0),
        ),
        ("regression", torch.tensor([1.0, 3.0]), Gaussian(sigma=1.0, dim=None)),
        ("regression", torch.tensor([[1.0, 100.0], [3.0, 300.0]]), Gaussian(sigma=(1.0, 100.0))),
        ("regression", torch.tensor([[1.0, -7.0], [3.0, -7.0]]), Gaussian(sigma=(1.0, 7.0))),  # one does not vary
        ("regression", torch.tensor([[1.0, 0.0], [3.0, 0.0]]), Gaussian(sigma=(1.0, 1.0))),
        ("regression", {"depth": torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)}, Gaussian("depth", (1.0,))),
        ("regression", torch.tensor([1.0, 3.0]).view(2, 1, 1), Gaussian(sigma=1.0, dim=None)),
    ],
)
def test_other_tasks_find_their_heads(task: str, outputs: Any, expected: Head) -> None:
    assert head(task, outputs) == expected


def test_nats_of_an_embedding_are_its_cosine_distance() -> None:
    known = torch.nn.functional.normalize(z(64, 128).double())
    near = torch.nn.functional.normalize(known + 0.003 * z(128, 64).T.double())
    nats = TASKS["embedding"].likelihood_of(known).divergence({"": known}, {"": near})
    assert torch.allclose(nats, 1 - torch.nn.functional.cosine_similarity(known, near), rtol=1e-6)


@pytest.mark.parametrize(
    ("task", "outputs", "match"),
    [
        ("classification", z(2, 21, 4, 4), r"expects one tensor of class scores .* a single tensor \[2, 21, 4, 4\]"),
        ("classification", {"a": z(8, 5), "b": z(8, 3)}, r"gives 'a' \[8, 5\], 'b' \[8, 3\]; choose another --task"),
        ("classification", torch.ones(8, 5, dtype=torch.int64), r"gives a single tensor \[8, 5\]"),
        ("classification", {}, "the network gives no tensor"),
        ("classification", z(8, 5).sigmoid(), "independent probabilities"),
        ("segmentation", z(8, 5), r"expects one map of class scores \[N, classes, H, W\], .* \[8, 5\]"),
        ("segmentation", [z(1, 3, 4, 4), z(1, 3, 2, 2)], r"'0' \[1, 3, 4, 4\], '1' \[1, 3, 2, 2\]"),
        ("embedding", z(8, 1), r"expects one tensor of vectors .* \[8, 1\]"),
        ("embedding", torch.zeros(8, 4), "all 8 are zero"),
        ("regression", torch.ones(4, 2), "all 4 samples give the same"),
        ("regression", torch.ones(1, 2), "all 1 samples give the same"),
        ("regression", {"boxes": z(8, 4), "depth": z(8)}, r"'boxes' \[8, 4\], 'depth' \[8\]"),
    ],
)
def test_outputs_of_another_kind_are_refused_in_one_line(task: str, outputs: Any, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        TASKS[task].likelihood_of(outputs)
    assert "\n" not in str(error.value)


def test_a_fixed_likelihood_is_checked_against_the_outputs() -> None:
    task = Task("mine", Likelihood((Categorical("a"), Gaussian("b", sigma=2.0))))
    assert task.likelihood_of({"a": z(4, 3), "b": z(4, 2)}) == task.likelihood
    with pytest.raises(InputError, match="expects output 'b'"):
        task.likelihood_of({"a": z(4, 3)})


@pytest.mark.parametrize(
    ("task", "outputs", "labelled", "unlabelled"),
    [
        ("classification", z(8, 5), ["top1", "kl"], ["agreement", "kl"]),
        ("regression", z(8, 5), ["rmse", "kl"], ["rmse_to_float", "kl"]),
        ("segmentation", z(2, 3, 4, 4), ["miou", "pixel_accuracy", "kl"], ["agreement", "kl"]),
        ("embedding", z(8, 5), ["cosine", "kl"], ["cosine", "kl"]),
    ],
)
def test_every_task_has_metrics_with_and_without_targets(
    task: str, outputs: Tensor, labelled: list[str], unlabelled: list[str]
) -> None:
    likelihood = TASKS[task].likelihood_of(outputs)
    for expected, known in ((labelled, True), (unlabelled, False)):
        metrics = TASKS[task].metrics_of(likelihood, known)
        assert [metric.name for metric in metrics] == expected
        assert known or all(metric.against == "reference" for metric in metrics)


def test_tasks_that_make_no_sense_are_refused() -> None:
    likelihood = Likelihood((Categorical(),))
    metric = mean_metric("a", lambda outputs, targets: 1.0, higher_is_better=True)
    with pytest.raises(InputError, match=r"different names .* got a, a"):
        Task("t", likelihood, (metric, metric))
    with pytest.raises(InputError, match="'kl' is taken"):
        Task("t", likelihood, (mean_metric("kl", abs, higher_is_better=True),)).metrics_of(likelihood, True)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be Metric records, as mean_metric makes"):
        Task("t", likelihood, (abs,))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="likelihood must be a Likelihood, got 3"):
        Task("t", 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must give a Likelihood, got a NoneType"):
        Task("t", lambda outputs: None).likelihood_of(z(2, 2))  # type: ignore[arg-type, return-value]
    with pytest.raises(InputError, match="one Categorical or Bernoulli head"):
        TASKS["classification"].metrics_of(Likelihood((Gaussian(),)), True)


OWN = """
from mpsearch.tasks.metric import mean_metric
from mpsearch.tasks.task import Task
from recon.likelihood.heads import Gaussian
from recon.likelihood.likelihood import Likelihood

def off(outputs, targets):
    return (outputs - targets).abs().mean(1)

task = Task("own", Likelihood((Gaussian(sigma=0.1),)), (mean_metric("off", off, higher_is_better=False),))

def make():
    return task

def broken():
    raise ValueError("no such luck")

number = 3
"""


def test_the_users_task(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    for name in ("task", "make"):
        task = load_task(f"{file}:{name}")
        assert task.name == "own"
        (metric, _) = task.metrics_of(task.likelihood_of(z(2, 3)), True)
        tally = metric.start()
        tally.add(torch.ones(2, 3), torch.zeros(2, 3), None)
        tally.add(torch.ones(1, 3), torch.tensor([[0.0, 0.0, 4.0]]), None)
        assert tally.value() == pytest.approx((2 * 1 + 5 / 3) / 3)
    for name, match in (
        ("broken", "own.py:broken: the function raised ValueError: no such luck"),
        ("number", "must be a Task, or a function that returns one; got a int"),
        ("nothing", "got nothing of that name"),
    ):
        with pytest.raises(InputError, match=match):
            load_task(f"{file}:{name}")


def test_names_of_tasks() -> None:
    assert load_task("classification") is TASKS["classification"]
    assert sorted(TASKS) == ["classification", "embedding", "regression", "segmentation"]
    with pytest.raises(InputError, match=r"no task 'detecton': expected classification, .*, or FILE.py:task"):
        load_task("detecton")
    with pytest.raises(InputError, match="no such file"):
        load_task("absent.py:task")


def test_masked_scores_are_logits() -> None:
    scores = z(8, 5)
    scores[:, 2] = -math.inf
    assert head("classification", scores) == Categorical()
