"""Cells: what a detector says at every anchor, grid cell or proposal: is there an object, of which class, in which box.

The class and the box of an object are random only where there is one. By the chain rule the divergence of a cell is
that of its objectness, plus the divergence of class and box times the float network's probability of an object (Cover
and Thomas, Elements of Information Theory, theorem 2.5.3). So ten thousand cells of background do not drown twenty
objects: their boxes do not count, and their objectness only where it changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hwmodel.errors import InputError
from recon.likelihood.heads import Bernoulli, Categorical, Form, Gaussian, Head, signs

Kind = Literal["independent", "exclusive", "background"]
Weighting = Literal["object", "all", "top"]

TOP = 100  # cells of an image that count with weighting "top": as many detections as COCO's metric looks at
_FORMS: dict[Kind, tuple[str, ...]] = {
    "independent": ("logits", "probabilities"),
    "exclusive": get_args(Form),
    "background": get_args(Form),
}
Rows = tuple[Head, Tensor, Tensor]  # a distribution, what is said of it (N, cells, elements), its weight (N, cells)


@dataclass(frozen=True, slots=True)
class Channels:
    """Channels `first` … `first + count` (None: all that follow) along `dim` of one tensor for each level.

    `parts` are the paths of the tensors (N, …); every other dimension of them holds cells.
    """

    parts: tuple[str, ...]
    first: int = 0
    count: int | None = None
    dim: int = 1

    def __post_init__(self) -> None:
        if not self.parts or self.dim == 0 or self.first < 0 or (self.count is not None and self.count < 1):
            raise InputError(
                f"channels need one part or more, a dimension other than 0 and a positive range, got {self}"
            )

    def rows(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """(N, cells of all levels, channels) of outputs by path. Raises InputError where they are not there."""
        found = []
        for part in self.parts:
            z = outputs.get(part)
            if z is None:
                there = ", ".join(map(repr, outputs)) or "no tensor"
                raise InputError(f"the task expects output {part!r}, the network gives {there}; name one of these")
            if not z.is_floating_point() or not -z.dim() < self.dim < z.dim() or z.dim() < 2:
                raise InputError(f"output {part!r} {list(z.shape)}, {z.dtype}, has no channels along {self.dim}")
            stop = z.shape[self.dim] if self.count is None else self.first + self.count
            if not self.first < stop <= z.shape[self.dim]:
                raise InputError(
                    f"output {part!r} {list(z.shape)} has {z.shape[self.dim]} channels along dimension {self.dim}, "
                    f"the task expects channels {self.first} to {stop - 1}"
                )
            rows = z.narrow(self.dim, self.first, stop - self.first).movedim(self.dim, -1)
            found.append(rows.reshape(len(z), -1, stop - self.first))
        return torch.cat(found, 1)


@dataclass(frozen=True, slots=True)
class Cells:
    """The heads of a detector, all of them over the same cells.

    - `classes`: of `kind` `independent` (a sigmoid each), `exclusive` (a softmax) or `background` (a softmax whose
      class 0 is background), in a `form` as other heads have it.
    - `boxes`: four numbers, or four for each class, with standard deviations `sigma` in their own units, one or four.
    - `objectness`: one channel in `objectness_form`; without it the classes say whether there is an object.
    - `quality`: one logit, such as FCOS' centerness, which means something where there is an object.
    - `weighting`: `object`, the chain rule above; `all` counts every cell in full; `top` the 100 of each image with the
      highest scores, and no other.

    Raises InputError for unknown names, a sigma that is not positive, or where nothing says what an object is.
    """

    classes: Channels | None = None
    boxes: Channels | None = None
    objectness: Channels | None = None
    quality: Channels | None = None
    kind: Kind = "independent"
    form: Form = "logits"
    objectness_form: Literal["logits", "probabilities"] = "logits"
    sigma: float | tuple[float, ...] = 0.1
    weighting: Weighting = "object"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.weighting not in get_args(Weighting):
            raise InputError(
                f"cells have kind {' or '.join(get_args(Kind))} and weighting {' or '.join(get_args(Weighting))}, got "
                f"{self.kind!r} and {self.weighting!r}"
            )
        if self.form not in _FORMS[self.kind]:
            raise InputError(f"{self.kind} classes have form {' or '.join(_FORMS[self.kind])}, got {self.form!r}")
        if self.classes is None and self.objectness is None:
            raise InputError("cells need classes or objectness: nothing says where there is an object")
        if isinstance(self.sigma, tuple) and len(self.sigma) != 4:
            raise InputError(f"boxes have one sigma, or four, got {len(self.sigma)}")
        Gaussian("", self.sigma, 2)

    @property
    def parts(self) -> tuple[str, ...]:
        """The paths of the outputs that are read."""
        channels = (self.classes, self.boxes, self.objectness, self.quality)
        return tuple(dict.fromkeys(part for one in channels if one is not None for part in one.parts))

    def check(self, outputs: Mapping[str, Tensor]) -> None:
        """Raises InputError where outputs (N, …) by path cannot be these cells."""
        counts = {}
        for name in ("classes", "boxes", "objectness", "quality"):
            channels: Channels | None = getattr(self, name)
            if channels is not None:
                counts[name] = channels.rows(outputs).shape[1]
        if len(set(counts.values())) > 1:
            seen = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(f"all heads of a detector must have as many cells, got {seen}")
        for name in ("objectness", "quality"):
            channels = getattr(self, name)
            if channels is not None and (width := channels.rows(outputs).shape[2]) != 1:
                raise InputError(f"{name} is one channel, the task names {width}")
        if self.boxes is not None:
            width = self.boxes.rows(outputs).shape[2]
            classes = 1 if self.classes is None else self.classes.rows(outputs).shape[2]
            if width not in (4, 4 * classes):
                raise InputError(f"boxes are four numbers, or four for each of {classes} classes, got {width}")
        for head, rows, _ in self._rows(outputs, outputs):
            head.check(rows)

    def presence(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The probability (N, cells) of an object, by objectness, or else by the classes; without gradient."""
        if self.objectness is not None:
            logits = Bernoulli("", 2, self.objectness_form).logits(self.objectness.rows(outputs).detach())
            return logits[..., 0].double().sigmoid()
        if self.kind == "exclusive":  # one of them is always there
            return torch.ones_like(self._probabilities(outputs)[..., 0])
        classes = self._probabilities(outputs)
        return 1 - classes[..., 0] if self.kind == "background" else classes.amax(-1)

    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The score (N, cells) of the likeliest class; without gradient."""
        presence = self.presence(outputs)
        if self.classes is None or self.objectness is None:
            return presence
        return presence * self._probabilities(outputs).amax(-1)

    def probe(self, outputs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """⟨v_n, outputs_n⟩ (N,), where E[v_n v_nᵀ] is the Fisher information at sample n."""
        first, *others = self._rows(outputs, outputs)
        total = first[0].probe(first[1], generator, first[2])
        for head, rows, weight in others:
            by_sample = head.probe(rows, generator, weight)
            total = total + by_sample * signs((len(by_sample),), generator).to(by_sample)
        return total

    def divergence(self, reference: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Tensor:
        """KL(reference ‖ outputs) (N,) in nats per image, weighted as the reference says, in double precision."""
        pairs = zip(self._rows(reference, reference), self._rows(outputs, reference), strict=True)
        terms = [head.divergence(known, rows, weight) for (head, known, weight), (_, rows, _) in pairs]
        return torch.stack(terms).sum(0)

    def _probabilities(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Those of the classes (N, cells, classes), without gradient."""
        assert self.classes is not None
        head, rows = self._classes, self.classes.rows(outputs).detach()
        logits = head.logits(rows).double().view_as(rows)
        return logits.sigmoid() if isinstance(head, Bernoulli) else logits.softmax(-1)

    @property
    def _classes(self) -> Categorical | Bernoulli:
        if self.kind != "independent":
            return Categorical("", 2, self.form)
        return Bernoulli("", 2, "probabilities" if self.form == "probabilities" else "logits")

    def _rows(self, outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Iterator[Rows]:
        """The distributions that outputs describe, weighted as a reference says."""
        presence = self.presence(reference)
        always = torch.ones_like(presence)
        given = presence
        if self.weighting == "all":
            given = always
        elif self.weighting == "top":
            best = self.scores(reference).topk(min(TOP, presence.shape[1])).indices
            always = given = torch.zeros_like(presence).scatter_(1, best, 1.0)
        if self.objectness is not None:
            yield Bernoulli("", 2, self.objectness_form), self.objectness.rows(outputs), always
        if self.classes is not None:
            yield self._classes, self.classes.rows(outputs), always if self.objectness is None else given
        if self.quality is not None:
            yield Bernoulli("", 2), self.quality.rows(outputs), given
        if self.boxes is not None:
            boxes = self.boxes.rows(outputs)
            if boxes.shape[2] > 4:  # those of a class count as far as it is the one
                share = self._probabilities(reference) * (given / presence.clamp_min(1e-12)).unsqueeze(-1)
                if self.kind == "background":
                    share[..., 0] = 0
                boxes, given = boxes.reshape(len(boxes), -1, 4), share.flatten(1)
            yield Gaussian("", self.sigma, 2), boxes, given
