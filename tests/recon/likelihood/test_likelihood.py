"""Heads against closed forms: the Fisher information by many draws, the divergence by torch.distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli as BernoulliLaw
from torch.distributions import Categorical as CategoricalLaw
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import one_hot

from hwmodel.errors import InputError
from recon.likelihood.cells import Cells, Channels, Weighting
from recon.likelihood.heads import Bernoulli, Categorical, Gaussian, Head
from recon.likelihood.likelihood import Likelihood

DRAWS = 200_000
ONE = Likelihood((Categorical(),))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def second_moment(likelihood: Likelihood, outputs: dict[str, Tensor]) -> Tensor:
    """E[v vᵀ] over all outputs of one sample, from `DRAWS` copies of it."""
    many = {part: z.expand(DRAWS, *z.shape[1:]).clone().requires_grad_() for part, z in outputs.items()}
    gradients = torch.autograd.grad(likelihood.probe(many, generator()), [*many.values()])
    v = torch.cat([gradient.reshape(DRAWS, -1) for gradient in gradients], 1)
    return v.double().T @ v.double() / DRAWS


def hessian(likelihood: Likelihood, outputs: dict[str, Tensor]) -> Tensor:
    """The second derivative of the divergence of one sample at itself: the Fisher information by another way."""
    parts = {part: z.double() for part, z in outputs.items()}
    sizes = [z.numel() for z in parts.values()]

    def divergence(flat: Tensor) -> Tensor:
        pieces = zip(parts.items(), flat.split(sizes), strict=True)
        return likelihood.divergence(parts, {part: piece.view_as(z) for (part, z), piece in pieces}).sum()

    return torch.autograd.functional.hessian(divergence, torch.cat([z.flatten() for z in parts.values()]))


def logits(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(1), dtype=torch.float64)


HEADS: list[tuple[Head, Tensor]] = [
    (Categorical(), logits(1, 5)),
    (Categorical(), 6 * logits(1, 3)),  # sure of itself
    (Categorical(), logits(1, 3, 2, 2)),  # a map of classes
    (Categorical(dim=-1), logits(1, 4, 3)),  # tokens
    (Categorical(form="log-probabilities"), logits(1, 4).log_softmax(1)),
    (Categorical(form="probabilities"), logits(1, 4).softmax(1)),
    (Bernoulli(), logits(1, 4)),
    (Bernoulli(dim=None), logits(1)),
    (Bernoulli(dim=None), logits(1, 1, 2, 2)),
    (Bernoulli(form="probabilities"), logits(1, 3).sigmoid()),
    (Gaussian(sigma=0.5), logits(1, 3)),
    (Gaussian(sigma=(0.5, 2.0)), logits(1, 2, 3)),
    (Gaussian(sigma=3.0, dim=None), logits(1, 4)),
]


@pytest.mark.parametrize(("head", "z"), HEADS, ids=lambda value: str(value) if not isinstance(value, Tensor) else "")
def test_the_probe_has_the_second_derivative_of_the_divergence_as_second_moment(head: Head, z: Tensor) -> None:
    likelihood, outputs = Likelihood((head,)), {"": z}
    likelihood.check(outputs)
    fisher = hessian(likelihood, outputs)
    moment = second_moment(likelihood, {"": z.float()})
    if isinstance(head, Categorical) and head.form == "probabilities":
        # Probabilities live on the simplex: only errors that sum to zero mean the same in both.
        tangent = torch.eye(z.numel()) - 1 / z.numel()
        fisher, moment = tangent.double() @ fisher @ tangent.double(), tangent.double() @ moment @ tangent.double()
    assert torch.allclose(moment, fisher, rtol=0.02, atol=0.01 * float(fisher.diagonal().max()))


def test_closed_forms() -> None:
    z = logits(1, 4)
    p = z[0].softmax(0)
    assert torch.allclose(hessian(ONE, {"": z}), p.diag() - p[:, None] * p)
    q = z[0].sigmoid()
    assert torch.allclose(hessian(Likelihood((Bernoulli(),)), {"": z}), (q * (1 - q)).diag())
    sigma = torch.tensor([1.0, 2.0, 4.0, 0.5], dtype=torch.float64)
    gaussian = Likelihood((Gaussian(sigma=tuple(sigma.tolist())),))
    assert torch.allclose(hessian(gaussian, {"": z}), sigma.pow(-2).diag())


def test_heads_do_not_seem_to_depend_on_each_other() -> None:
    heads = (Categorical("a"), Categorical("b"), Gaussian("boxes"), Bernoulli("c"))
    outputs = {"a": 3 * logits(1, 3), "b": 3 * logits(1, 2), "boxes": logits(1, 2), "c": logits(1, 2)}
    fisher = hessian(Likelihood(heads), outputs)
    moment = second_moment(Likelihood(heads), {part: z.float() for part, z in outputs.items()})
    assert torch.allclose(moment, fisher, rtol=0.02, atol=0.01)
    assert torch.equal(fisher[:3, 3:], torch.zeros(3, 6))


@pytest.mark.parametrize("shape", [(7, 5), (64, 1000)])
def test_one_categorical_head_draws_what_it_always_drew(shape: tuple[int, int]) -> None:
    z = (4 * torch.randn(shape, generator=generator(1))).requires_grad_()
    one, other = generator(), generator()
    for _ in range(2):
        p = z.detach().double().softmax(1)
        share = p * ((1 - p).square() + p.square().sum(1, keepdim=True) - p.square())
        wanted = one_hot(torch.multinomial(share, 1, generator=one)[:, 0], shape[1]) - p
        expected = (wanted / wanted.norm(dim=1, keepdim=True) * share.sum(1, keepdim=True).sqrt()).float()
        (found,) = torch.autograd.grad(ONE.probe({"": z}, other), z)
        assert torch.allclose(found, expected, atol=1e-7)
    assert torch.equal(one.get_state(), other.get_state())


def test_every_label_weighs_the_same() -> None:
    z = (6 * logits(1, 5)).float().expand(1000, 5).clone().requires_grad_()
    (v,) = torch.autograd.grad(ONE.probe({"": z}, generator()), z)
    p = z[0].softmax(0)
    assert torch.allclose(v.square().sum(1), (1 - p.square().sum()).expand(1000))


@pytest.mark.parametrize(("head", "z"), HEADS, ids=lambda value: str(value) if not isinstance(value, Tensor) else "")
def test_half_the_square_of_the_probe_is_the_divergence_of_small_errors(head: Head, z: Tensor) -> None:
    error = 1e-3 * torch.randn(z.shape, generator=generator(2), dtype=torch.float64)
    if getattr(head, "form", "logits") == "probabilities":
        error = error * z * (1 - z)
    if isinstance(head, Categorical) and head.form == "probabilities":
        error = error - error.mean(head.dim, keepdim=True)
    likelihood = Likelihood((head,))
    predicted = error.flatten() @ second_moment(likelihood, {"": z.float()}) @ error.flatten() / 2
    measured = float(likelihood.divergence({"": z}, {"": z + error}))
    assert float(predicted) == pytest.approx(measured, rel=0.03)


def test_divergences_are_those_of_torch_distributions() -> None:
    a, b = logits(3, 4, 2), logits(3, 4, 2).flip(0) / 2
    expected = kl_divergence(CategoricalLaw(logits=a.mT), CategoricalLaw(logits=b.mT)).mean(1)
    assert torch.allclose(Categorical().divergence(a, b), expected)
    assert torch.allclose(Categorical(form="log-probabilities").divergence(a.log_softmax(1), b), expected)
    assert torch.allclose(Categorical(form="probabilities").divergence(a.softmax(1), b.softmax(1)), expected)
    assert torch.allclose(Categorical(dim=-1).divergence(a.mT, b.mT), expected)
    one = kl_divergence(BernoulliLaw(logits=a), BernoulliLaw(logits=b))
    assert torch.allclose(Bernoulli().divergence(a, b), one.sum(1).mean(1))
    assert torch.allclose(Bernoulli(dim=None).divergence(a, b), one.mean((1, 2)))
    assert torch.allclose(Bernoulli(form="probabilities").divergence(a.sigmoid(), b.sigmoid()), one.sum(1).mean(1))
    sigma = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    normal = kl_divergence(Normal(a.mT, sigma), Normal(b.mT, sigma)).sum(2).mean(1)
    assert torch.allclose(Gaussian(sigma=(0.5, 1.0, 2.0, 4.0)).divergence(a, b), normal)


def test_heads_add_up_and_single_precision_is_enough() -> None:
    heads = (Categorical("a"), Bernoulli("b", dim=None))
    outputs = {"a": logits(3, 4), "b": logits(3)}
    others = {part: z + 1e-4 * z.flip(0) for part, z in outputs.items()}
    found = Likelihood(heads).divergence(outputs, others)
    assert found.shape == (3,)
    assert torch.allclose(found, sum(head.divergence(outputs[head.part], others[head.part]) for head in heads))
    near = {part: z.float() for part, z in others.items()}
    single = Likelihood(heads).divergence({part: z.float() for part, z in outputs.items()}, near)
    assert single.dtype == torch.float64
    assert torch.allclose(single, found, rtol=1e-2)


def test_masked_classes_and_saturated_probabilities_are_finite() -> None:
    masked = torch.tensor([[1.0, -math.inf, 0.0]], requires_grad=True)
    assert ONE.divergence({"": masked}, {"": masked}).tolist() == [0.0]
    (v,) = torch.autograd.grad(ONE.probe({"": masked}, generator()), masked)
    assert torch.isfinite(v).all()
    assert float(v[0, 1]) == 0.0
    for head in (Bernoulli(form="probabilities"), Categorical(form="probabilities")):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            sure = torch.tensor([[0.0, 1.0]], dtype=dtype, requires_grad=True)
            assert head.divergence(sure, sure).tolist() == [0.0]
            assert torch.isfinite(head.divergence(sure, 1 - sure)).all()
            (v,) = torch.autograd.grad(head.probe(sure, generator()).sum(), sure)
            assert torch.isfinite(v).all()


def test_only_logits_may_be_rescaled() -> None:
    assert [head.rescalable for head in (Categorical(), Bernoulli(), Gaussian())] == [True, True, False]


def refused(match: str) -> pytest.RaisesExc[InputError]:
    return pytest.raises(InputError, match=match)


def test_heads_that_make_no_sense_are_refused() -> None:
    with refused("at least one head"):
        Likelihood(())
    with refused("one head, got heads for 'a', 'a'"):
        Likelihood((Categorical("a"), Gaussian("a")))
    for sigma in (0.0, -1.0, math.nan, math.inf, (), (1.0, 0.0)):
        with refused("positive and finite"):
            Gaussian(sigma=sigma)
    with refused("dimension 0 of an output holds the samples"):
        Categorical(dim=0)
    with refused("form of a Categorical head must be one of logits, log-probabilities, probabilities, got 'odds'"):
        Categorical(form="odds")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("head", "outputs", "match"),
    [
        (
            Categorical("out"),
            {"a": torch.ones(2, 3), "b": torch.ones(2)},
            r"expects output 'out', .* 'a' \[2, 3\], 'b'",
        ),
        (Categorical(), {"a": torch.ones(2, 3)}, r"expects output a single tensor, the network gives 'a' \[2, 3\]"),
        (Categorical(dim=2), {"": torch.ones(2, 3)}, r"the output \[2, 3\] has no dimension 2 beside the samples"),
        (Categorical(dim=-2), {"": torch.ones(2, 3)}, "no dimension -2 beside the samples"),
        (Categorical(), {"": torch.ones(2, 1)}, "one class along dimension 1.* give the task a Bernoulli head"),
        (Bernoulli(), {"": torch.ones(2)}, r"\[2\] has no dimension 1"),
        (Gaussian(sigma=(1.0, 2.0)), {"": torch.ones(2, 3)}, "3 elements along dimension 1, .* 2 sigmas"),
        (Categorical(), {"": torch.ones(2, 3, dtype=torch.int64)}, "needs floating-point values"),
        (Categorical(form="probabilities"), {"": -torch.ones(2, 3)}, "from -1 to -1, which are no probabilities"),
        (Categorical(form="log-probabilities"), {"": torch.ones(2, 3)}, "which are no log-probabilities"),
    ],
)
def test_outputs_that_do_not_fit_are_refused_in_one_line(head: Head, outputs: dict[str, Tensor], match: str) -> None:
    with refused(match) as error:
        Likelihood((head,)).check(outputs)
    assert "\n" not in str(error.value)


def test_divergence_does_not_broadcast() -> None:
    with refused(r"the shape of the reference, \[4, 3\], got \[1, 3\]"):
        ONE.divergence({"": torch.ones(4, 3)}, {"": torch.ones(1, 3)})


def maps(seed: int = 1, *, scale: float = 1.0) -> dict[str, Tensor]:
    """Two levels of a detector: four numbers of a box, an objectness and three classes at 2 and 1 cells."""
    sizes = {"0": (1, 8, 1, 2), "1": (1, 8, 1, 1)}
    return {part: scale * torch.randn(size, generator=generator(seed)).double() for part, size in sizes.items()}


def channels(first: int, count: int) -> Channels:
    return Channels(("0", "1"), first, count)


WHOLE = Cells(channels(5, 3), channels(0, 4), channels(4, 1), sigma=(0.5, 0.5, 0.2, 0.2))
CELLS = [
    WHOLE,
    replace(WHOLE, kind="exclusive"),
    replace(WHOLE, weighting="all"),
    replace(WHOLE, objectness=None, quality=channels(4, 1)),
    Cells(channels(5, 3), channels(0, 4), kind="background"),
    Cells(objectness=channels(4, 1), boxes=channels(0, 4)),
    Cells(channels(6, 2), Channels(("0", "1"), 0, 8), kind="background"),
]


@pytest.mark.parametrize("cells", CELLS)
def test_the_probe_of_cells_has_the_second_derivative_of_their_divergence_as_second_moment(cells: Cells) -> None:
    likelihood, outputs = Likelihood((cells,)), maps()
    likelihood.check(outputs)
    wanted = hessian(likelihood, outputs)
    found = second_moment(likelihood, {part: z.float() for part, z in outputs.items()})
    assert torch.allclose(found, wanted, atol=0.02 * float(wanted.diagonal().max()))


def test_the_divergence_of_cells_is_that_of_the_law_of_objects_their_classes_and_their_boxes() -> None:
    """Brute force: a cell draws nothing, or an object of one class with a box; KL over all that it may draw."""
    cells = replace(WHOLE, kind="exclusive", sigma=0.5)
    known, other = maps(1), maps(2)
    total = torch.zeros(1, dtype=torch.float64)
    for part in known:
        p, q = (tree[part].permute(0, 2, 3, 1).flatten(0, 2) for tree in (known, other))
        (a, b), (c, d) = ((z[:, 4].sigmoid(), z[:, 5:].softmax(1)) for z in (p, q))
        total += ((1 - a) * ((1 - a) / (1 - c)).log()).sum()
        joint, theirs = a[:, None] * b, c[:, None] * d
        boxes = kl_divergence(Normal(p[:, :4], 0.5), Normal(q[:, :4], 0.5)).sum(1)
        total += (joint * ((joint / theirs).log() + boxes[:, None])).sum()
    assert torch.allclose(Likelihood((cells,)).divergence(known, other), total)


def test_a_thousand_cells_of_background_do_not_drown_an_object() -> None:
    row = torch.zeros(1, 8, 1, 1001, dtype=torch.float64)
    row[:, 4] = -30.0
    row[0, 4, 0, 0] = 30.0
    moved = row.clone()
    moved[:, :4] += 1.0
    given = Cells(Channels(("",), 5), Channels(("",), 0, 4), Channels(("",), 4, 1), sigma=1.0)
    nats = {w: float(replace(given, weighting=w).divergence({"": row}, {"": moved})) for w in get_args(Weighting)}
    assert nats["object"] == pytest.approx(4 / 2)
    assert nats["all"] == pytest.approx(1001 * 4 / 2)
    assert nats["top"] == pytest.approx(100 * 4 / 2)


def test_boxes_of_a_class_count_as_far_as_it_is_likely() -> None:
    z = torch.tensor([[[0.0, 2.0, -1.0]]], dtype=torch.float64)
    known = {"classes": z, "boxes": torch.zeros(1, 1, 12, dtype=torch.float64)}
    moved = {"classes": z, "boxes": torch.cat([torch.ones(1, 1, 8), torch.zeros(1, 1, 4)], 2).double()}
    cells = Cells(Channels(("classes",), dim=2), Channels(("boxes",), dim=2), kind="background", sigma=1.0)
    cells.check(known)
    expected = 2 * z.softmax(2)[0, 0, 1]  # class 0 is background, class 2 stays
    assert torch.allclose(cells.divergence(known, moved), expected)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Cells(), "nothing says where there is an object"),
        (lambda: Cells(channels(5, 3), form="odds"), "independent classes have form logits or probabilities"),  # type: ignore[arg-type]
        (lambda: replace(WHOLE, weighting="some"), "weighting object or all or top, got 'independent' and 'some'"),
        (lambda: replace(WHOLE, sigma=(1.0, 2.0)), "one sigma, or four, got 2"),
        (lambda: replace(WHOLE, sigma=0.0), "must be positive"),
        (lambda: channels(5, 0), "a positive range"),
        (
            lambda: replace(WHOLE, objectness=channels(3, 2)).check(maps()),
            "objectness is one channel, the task names 2",
        ),
        (lambda: replace(WHOLE, boxes=channels(0, 5)).check(maps()), "boxes are four numbers, or four for each of 3"),
        (lambda: replace(WHOLE, classes=channels(5, 9)).check(maps()), "has 8 channels along dimension 1, .* 5 to 13"),
        (lambda: replace(WHOLE, classes=Channels(("0",), 5)).check(maps()), "as many cells, got classes 2, boxes 3"),
        (lambda: WHOLE.check({"0": maps()["0"]}), "expects output '1', the network gives '0'; name one of these"),
        (lambda: replace(WHOLE, objectness_form="probabilities").check(maps()), "which are no probabilities"),
    ],
)
def test_cells_that_cannot_be_are_refused_in_one_line(make: Callable[[], object], match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        make()
    assert "\n" not in str(error.value)
