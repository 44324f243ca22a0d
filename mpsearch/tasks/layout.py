"""Where in its outputs a detector speaks of boxes, objects and classes: found in what its `decode` makes of them.

Nothing is guessed from shapes. A channel that moves boxes is of the box; one that raises the scores of all classes is
the objectness; one that raises one score is that class. The same derivatives say how far a channel moves the edges of a
box, so that σ can be a share of its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from hwmodel.errors import InputError
from mpsearch.tasks.parts import decision_form, form_of
from recon.graph.samples import named_parts
from recon.likelihood.cells import Cells, Channels
from recon.likelihood.heads import Form

SHARE = 0.1  # of a box's size: the σ of its edges
IMAGES, BEST = 16, 50  # the derivatives are taken at the surest cells of some images

ADVICE = "say in FILE.py:task where boxes, objects and classes are (docs/tasks.md)"

Decoded = Callable[[Any], tuple[Tensor, Tensor]]


def cells_of(outputs: Any, decoded: Decoded) -> Cells:
    """The cells of a detector whose outputs, a pytree of maps (N, channels, …), `decoded` turns into boxes
    (N, cells, 4) and scores (N, cells, classes) differentiably, a box for each position, one map after another.

    Raises InputError where it does not, or where its derivatives do not tell channels apart.
    """
    parts = tuple(named_parts(outputs))
    leaves, _ = tree_flatten(outputs)
    if min(leaf.dim() for leaf in leaves) < 3 or len({leaf.shape[1] for leaf in leaves}) > 1:
        shapes = [list(leaf.shape) for leaf in leaves]
        raise InputError(f"detection reads maps [N, channels, …] of as many channels, got {shapes}; {ADVICE}")
    few = _Surest.of(outputs, decoded, 1)
    edges = torch.stack([few.slopes(edge) for edge in few.boxes.T])  # (4, cells, channels)
    raised = torch.stack([few.slopes(score) for score in few.scores.T])  # (classes, cells, channels)
    of_box, of_all, of_class = _roles(edges, raised)
    known = dict(zip(parts, leaves, strict=True))
    classes = Channels(parts, of_class[0], len(of_class))
    rows = classes.rows(known).detach()
    exclusive = bool((raised[..., of_class] < 0).any()) or _adds_up(rows)
    form: Form = form_of(rows, 2) if exclusive else decision_form(rows)
    objectness = Channels(parts, of_all[0], 1) if of_all else None
    return Cells(
        classes,
        Channels(parts, of_box[0], 4),
        objectness,
        kind="exclusive" if exclusive else "independent",
        form=form,
        objectness_form="logits" if objectness is None else decision_form(objectness.rows(known).detach()),
        sigma=_sigma(_Surest.of(outputs, decoded, IMAGES), of_box),
    )


def _sigma(surest: _Surest, of_box: Sequence[int]) -> tuple[float, ...]:
    """By channel of the box, what moves an edge by `SHARE` of the box's size: the median over the surest cells."""
    edges = torch.stack([surest.slopes(edge)[:, of_box] for edge in surest.boxes.T]).abs()  # (4, cells, 4)
    sizes = (surest.boxes[:, 2:] - surest.boxes[:, :2]).detach().repeat(1, 2).T.unsqueeze(2)
    moved = (edges / sizes.clamp_min(1e-6)).amax(0).median(0).values
    return tuple((SHARE / moved.clamp_min(1e-6)).tolist())


@dataclass(frozen=True, slots=True, eq=False)
class _Surest:
    """Boxes (cells, 4) and scores (cells, classes) at the cells with the highest scores, `index` in all images'
    cells, and the outputs that they depend on."""

    boxes: Tensor
    scores: Tensor
    index: Tensor
    leaves: tuple[Tensor, ...]

    @classmethod
    def of(cls, outputs: Any, decoded: Decoded, images: int) -> _Surest:
        """The surest cells of the first images. Raises InputError where decoding does not fit or has no gradient."""
        leaves, spec = tree_flatten(outputs)
        leaves = [leaf[:images].detach().clone().requires_grad_() for leaf in leaves]
        with torch.enable_grad():
            boxes, scores = decoded(tree_unflatten(leaves, spec))
        if not boxes.requires_grad or not scores.requires_grad:
            raise InputError(f"decode must be differentiable to say where boxes and classes are; else {ADVICE}")
        if sum(leaf[0, 0].numel() for leaf in leaves) != boxes.shape[1]:
            raise InputError(f"detection reads one box for each position of a map, decode gives others; {ADVICE}")
        index = scores.detach().amax(2).flatten().topk(min(BEST, scores.shape[0] * scores.shape[1])).indices
        return cls(boxes.flatten(0, 1)[index], scores.flatten(0, 1)[index], index, tuple(leaves))

    def slopes(self, value: Tensor) -> Tensor:
        """The derivatives (cells, channels) of one value (cells,) of each cell by the channels there."""
        found = torch.autograd.grad(value.sum(), self.leaves, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(z) if one is None else one for one, z in zip(found, self.leaves, strict=True)]
        return torch.cat([one.flatten(2).transpose(1, 2) for one in filled], 1).flatten(0, 1)[self.index]


def _roles(edges: Tensor, raised: Tensor) -> tuple[list[int], list[int], list[int]]:
    """The channels of the box, of the objectness and of the classes in order, from derivatives (…, cells, channels).

    Raises InputError where they are not four, one at most, and one for each class, side by side.
    """
    up, down = (raised > 0).any(1), (raised < 0).any(1)  # (classes, channels)
    for_all = up.all(0) & ~down.any(0) if len(raised) > 1 else torch.zeros_like(up[0])
    of_box = (edges != 0).any(0).any(0).nonzero().flatten().tolist()
    if len(raised) == 1 and int(up.sum()) == 2:  # of one class: which of the two is called objectness does not matter
        for_all[up[0].nonzero()[0]] = True
    of_all = for_all.nonzero().flatten().tolist()
    own = [(row & ~for_all).nonzero().flatten().tolist() for row in up]
    of_class = [channels[0] for channels in own if len(channels) == 1]
    if not (_side_by_side(of_box, 4) and len(of_all) < 2 and _side_by_side(of_class, len(raised))):
        raise InputError(
            f"decode does not say where boxes and classes are: channels {of_box[:8]} move boxes, {of_all[:8]} raise "
            f"all scores, and {len(of_class)} of {len(raised)} classes have a channel of their own; {ADVICE}"
        )
    return of_box, of_all, of_class


def _side_by_side(channels: list[int], count: int) -> bool:
    return len(channels) == count and channels == list(range(channels[0], channels[0] + count))


def _adds_up(rows: Tensor) -> bool:
    """Whether values (…, classes) are probabilities that add up to 1."""
    return rows.shape[-1] > 1 and bool((rows >= 0).all() and ((rows.sum(-1) - 1).abs() < 1e-2).all())
