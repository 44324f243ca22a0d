"""Heads: the distribution that one tensor of the outputs describes.

An output is (N, …): dimension 0 are the samples, `dim` holds the classes or the elements of one event, whose nats add
up, and every other dimension holds positions (pixels, tokens), over which a sample's divergence is the mean: a map has
nats per pixel, a sentence nats per token. The Fisher information of that mean over P independent positions is
1/P of each position's, with nothing between them. Given a weight (N, P) of the positions, the divergence is their
weighted sum instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hwmodel.errors import InputError

Form = Literal["logits", "log-probabilities", "probabilities"]


@dataclass(frozen=True, slots=True)
class Categorical:
    """One of several classes along `dim`: softmax classifiers, maps of classes, language models.

    `part` is the output's path as `named_parts` gives it. Raises InputError for an unknown form, or dimension 0.
    """

    part: str = ""
    dim: int = 1
    form: Form = "logits"
    rescalable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_fields(self, get_args(Form))

    def check(self, z: Tensor) -> None:
        """Raises InputError where an output cannot be this head."""
        _check_output(self, z)
        if z.shape[self.dim] < 2:
            raise InputError(
                f"{_named(self, z)} has one class along dimension {self.dim}, a Categorical head needs two or more; "
                "give the task a Bernoulli head"
            )

    def logits(self, z: Tensor) -> Tensor:
        """Logits (N, positions, classes) of an output (N, …); a masked class, −∞, becomes the least finite number."""
        rows = _rows(z, self.dim)
        if self.form == "probabilities":
            rows = _single(rows.clamp_min(torch.finfo(z.dtype).tiny)).log()
        return rows.clamp_min(torch.finfo(z.dtype).min)

    def probe(self, z: Tensor, generator: torch.Generator, weight: Tensor | None = None) -> Tensor:
        """⟨v_n, z_n⟩ (N,) of an output z (N, …), where E[v_n v_nᵀ] is the Fisher information at sample n.

        v is the gradient e_y − p of log p(y|x) for one label y. With y ~ p, a network that is sure of itself draws its
        rare labels so seldom, and each of them weighs so much, that hundreds of samples do not average it out. So y is
        drawn in proportion to p_y ‖e_y − p‖², and v scaled by √(p_y / q_y): it is as long for every label, and E[v vᵀ]
        is diag(p) − p pᵀ as before. E[v] is no longer zero, so that several positions get random signs.
        """
        logits = self.logits(z)
        samples, positions, _ = logits.shape
        p = logits.detach().double().softmax(-1).flatten(0, 1)
        square = p.square()
        share = p * ((1 - p).square() + square.sum(-1, keepdim=True) - square).clamp_min(1e-300)
        label = torch.multinomial(share.cpu(), 1, generator=generator).to(p.device)
        direction = torch.zeros_like(p).scatter_(1, label, 1.0) - p
        v = F.normalize(direction, dim=-1) * share.sum(-1, keepdim=True).sqrt()
        if positions > 1:
            v = v * signs((samples * positions, 1), generator).to(v.device)
        return _inner(v.view_as(logits), logits, weight)

    def divergence(self, reference: Tensor, z: Tensor, weight: Tensor | None = None) -> Tensor:
        """KL(reference ‖ z) (N,) in nats of outputs (N, …), the mean over positions, in double precision."""
        log_p, log_q = (self.logits(outputs).double().log_softmax(-1) for outputs in (reference, z))
        return _over_positions((log_p.exp() * (log_p - log_q)).sum(-1), weight)


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Independent yes-or-no events: along `dim` they add up, elsewhere they are positions; all are where it is None.

    A multi-label classifier is (N, labels) with dim 1, one logit a sample is (N, 1) with dim 1 or (N,) with None.
    Raises InputError for an unknown form, or dimension 0.
    """

    part: str = ""
    dim: int | None = 1
    form: Literal["logits", "probabilities"] = "logits"
    rescalable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_fields(self, ("logits", "probabilities"))

    def check(self, z: Tensor) -> None:
        """Raises InputError where an output cannot be this head."""
        _check_output(self, z)

    def logits(self, z: Tensor) -> Tensor:
        """Logits (N, positions, events) of an output (N, …); probabilities stay where their logit is finite."""
        rows = _rows(z, self.dim)
        info = torch.finfo(z.dtype)
        if self.form == "probabilities":
            rows = _single(rows.clamp(info.tiny, 1 - info.eps / 2))
            rows = rows.log() - (-rows).log1p()
        return rows.clamp_min(info.min)

    def probe(self, z: Tensor, generator: torch.Generator, weight: Tensor | None = None) -> Tensor:
        """⟨v_n, z_n⟩ (N,) of an output z (N, …), where E[v_n v_nᵀ] is the Fisher information at sample n.

        That of a logit is p (1 − p): v is its root with a random sign, as long for either outcome.
        """
        logits = self.logits(z)
        known = logits.detach().double()
        v = (known.sigmoid() * (-known).sigmoid()).sqrt()
        return _inner(v * signs(tuple(v.shape), generator).to(v.device), logits, weight)

    def divergence(self, reference: Tensor, z: Tensor, weight: Tensor | None = None) -> Tensor:
        """KL(reference ‖ z) (N,) in nats of outputs (N, …): the sum of events, the mean over positions, in double."""
        a, b = (self.logits(outputs).double() for outputs in (reference, z))
        yes = a.sigmoid() * (F.logsigmoid(a) - F.logsigmoid(b))
        no = (-a).sigmoid() * (F.logsigmoid(-a) - F.logsigmoid(-b))
        return _over_positions((yes + no).sum(-1), weight)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Values with normal errors, standard deviation `sigma` in the output's unit: regression, boxes, embeddings.

    `sigma` is one number, or one for each element along `dim`. Elements add up along `dim`, and are positions elsewhere
    (everywhere where it is None). Raises InputError unless every sigma is positive and finite, and for dimension 0.
    """

    part: str = ""
    sigma: float | tuple[float, ...] = 1.0
    dim: int | None = 1
    rescalable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_fields(self, None)
        sigmas = self.sigma if isinstance(self.sigma, tuple) else (self.sigma,)
        if not sigmas or not all(0 < sigma < math.inf for sigma in sigmas):
            raise InputError(f"the sigma of a Gaussian head must be positive and finite, got {self.sigma}")

    def check(self, z: Tensor) -> None:
        """Raises InputError where an output cannot be this head."""
        _check_output(self, z)
        if isinstance(self.sigma, tuple) and len(self.sigma) != _rows(z, self.dim).shape[-1]:
            raise InputError(
                f"{_named(self, z)} has {_rows(z, self.dim).shape[-1]} elements along dimension {self.dim}, "
                f"the Gaussian head has {len(self.sigma)} sigmas; give one number, or one for each element"
            )

    def probe(self, z: Tensor, generator: torch.Generator, weight: Tensor | None = None) -> Tensor:
        """⟨v_n, z_n⟩ (N,) of an output z (N, …), where E[v_n v_nᵀ] is the Fisher information: v is ±1/σ."""
        rows = _rows(z, self.dim)
        v = signs(tuple(rows.shape), generator).to(z.device) / self._sigma(z)
        return _inner(v, rows, weight)

    def divergence(self, reference: Tensor, z: Tensor, weight: Tensor | None = None) -> Tensor:
        """½ Σ ((reference − z) / σ)² (N,) in nats of outputs (N, …), the mean over positions, in double precision."""
        error = _rows(reference, self.dim).double() - _rows(z, self.dim).double()
        return _over_positions((error / self._sigma(z)).square().sum(-1), weight) / 2

    def _sigma(self, z: Tensor) -> Tensor:
        return torch.tensor(self.sigma, dtype=torch.float64, device=z.device)


Head = Categorical | Bernoulli | Gaussian


def signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent +1 and −1 of a shape, float64, drawn on the CPU."""
    return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1


def _rows(z: Tensor, dim: int | None) -> Tensor:
    """An output (N, …) as (N, positions, elements along `dim`)."""
    if dim is None:
        return z.reshape(len(z), -1, 1)
    return z.movedim(dim, -1).reshape(len(z), -1, z.shape[dim])


def _single(z: Tensor) -> Tensor:
    """In single precision at least."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


def _inner(v: Tensor, z: Tensor, weight: Tensor | None) -> Tensor:
    """Inner products (N,) of (N, positions, elements), in single precision, for weighted positions."""
    scale = 1 / math.sqrt(z.shape[1]) if weight is None else weight.sqrt().unsqueeze(-1)
    return ((v * scale).float() * z.float()).sum((1, 2))


def _over_positions(nats: Tensor, weight: Tensor | None) -> Tensor:
    """The mean (N,) over positions (N, P), or their weighted sum."""
    return nats.mean(1) if weight is None else (nats * weight).sum(1)


def _check_fields(head: Head, forms: tuple[str, ...] | None) -> None:
    kind = type(head).__name__
    if head.dim == 0:
        raise InputError(f"dimension 0 of an output holds the samples; give the {kind} head another one")
    form = getattr(head, "form", None)
    if forms is not None and form not in forms:
        raise InputError(f"the form of a {kind} head must be one of {', '.join(forms)}, got {form!r}")


def _check_output(head: Head, z: Tensor) -> None:
    kind = type(head).__name__
    if not z.is_floating_point():
        raise InputError(f"{_named(head, z)} is {z.dtype}, a {kind} head needs floating-point values")
    if z.dim() < 1 or (head.dim is not None and not -z.dim() < head.dim < z.dim()):
        raise InputError(
            f"{_named(head, z)} has no dimension {head.dim} beside the samples; change the {kind} head's dim"
        )
    form = getattr(head, "form", "logits")
    if (form == "probabilities" and (z.min() < 0 or z.max() > 1)) or (form == "log-probabilities" and z.max() > 1e-3):
        raise InputError(
            f"{_named(head, z)} has values from {z.min():.3g} to {z.max():.3g}, which are no {form}; "
            f"change the {kind} head's form"
        )


def _named(head: Head, z: Tensor) -> str:
    return f"output {head.part!r} {list(z.shape)}" if head.part else f"the output {list(z.shape)}"
