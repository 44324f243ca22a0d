"""Which of the outputs counts, and in which form it is: by name, shape and values of example outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from hwmodel.errors import InputError
from recon.graph.samples import named_parts
from recon.likelihood.heads import Form
from recon.likelihood.likelihood import describe

Ending = Form | Literal["sigmoid"]  # the form that the last operation of a graph gives its output

TOLERANCE = 1e-2  # of sums that are 1: bfloat16 rounds probabilities to 1/256 of themselves
ADVICE = "choose another --task (boxes are --task detection), or say in FILE.py:task what the outputs mean"


class Examples(dict[str, Tensor]):
    """Example outputs (N, …) by path, with the `endings` of those parts of which the network's graph tells them, and
    the `whole` pytree that they are parts of."""

    def __init__(self, whole: Any, endings: Mapping[str, Ending] | None = None) -> None:
        super().__init__(named_parts(whole))
        self.whole = whole
        self.endings = dict(endings or {})


def ending_of(outputs: Mapping[str, Tensor], part: str) -> Ending | None:
    """What the graph of the network says of a part; None where it says nothing."""
    return outputs.endings.get(part) if isinstance(outputs, Examples) else None


def find_part(
    outputs: Mapping[str, Tensor], names: tuple[str, ...], fits: Callable[[Tensor], bool], expected: str
) -> str:
    """The path of the one floating-point output that fits; of several, the one whose last key is in `names`.

    Raises InputError where none or several remain: what was `expected`, what there is, and what to do.
    """
    fitting = [part for part, z in outputs.items() if z.is_floating_point() and z.dim() and fits(z)]
    named = [part for part in fitting if part.rpartition(".")[2] in names]
    for found in (named, fitting):
        if len(found) == 1:
            return found[0]
    raise InputError(f"{expected}, the network gives {describe(outputs)}; {ADVICE}")


def is_vector(z: Tensor) -> bool:
    """Whether an output (N, D), (N, D, 1, 1), … has one vector a sample."""
    return z.dim() >= 2 and z[0].numel() == z.shape[1]


def form_of(z: Tensor, dim: int) -> Form:
    """The form of class scores along `dim` of an output (N, …).

    Raises InputError where all lie between 0 and 1 without adding up to 1: several independent probabilities?
    """
    values = z.detach().double()
    if values.min() >= 0 and _ones(values.sum(dim)):
        return "probabilities"
    if values.max() <= TOLERANCE and _ones(values.exp().sum(dim)):
        return "log-probabilities"
    if values.min() >= 0 and values.max() <= 1 and values.min() < values.max():
        raise InputError(
            f"class scores expected, but all values of the output {list(z.shape)} lie between 0 and 1 without adding "
            f"up to 1: independent probabilities? {ADVICE}"
        )
    return "logits"


def decision_form(z: Tensor) -> Literal["logits", "probabilities"]:
    """The form of yes-or-no scores: probabilities where all lie between 0 and 1."""
    return "probabilities" if z.min() >= 0 and z.max() <= 1 else "logits"


def _ones(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() <= TOLERANCE).all())
