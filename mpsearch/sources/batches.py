"""Batches as samples: two iterables, such as DataLoaders, that a user's function returns.

A calibration batch is what the network takes: a tensor, a tuple or list of positional arguments, a dict of keyword
arguments. A validation batch is `(inputs, targets)`, or inputs alone. Which of them it is, the structure says: a batch
that is built like a calibration batch is inputs alone; else its last part is the targets, and what is before it, one
part or several, must be built like a calibration batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from hwmodel.errors import InputError
from mpsearch.sources.factory import contained, guarded
from mpsearch.sources.split import Split
from recon.graph.samples import Samples

Batch = tuple[Samples, Any]  # inputs, and targets or None


def are_batches(values: Any) -> bool:
    """Whether something is an iterable of batches, not an array or a single batch."""
    return isinstance(values, Iterable) and not isinstance(values, Tensor | np.ndarray | Mapping | str | bytes)


def positional_inputs(model: nn.Module) -> int | None:
    """The most positional arguments that a network takes; None where it does not say."""
    plain: Any = model
    while isinstance(plain, nn.DataParallel) or hasattr(plain, "_orig_mod"):
        plain = plain.module if isinstance(plain, nn.DataParallel) else plain._orig_mod
    try:
        parameters = inspect.signature(plain.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return None
    return sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)


def calibration_batches(batches: Iterable[Any], takes: int | None, source: str) -> Iterator[Batch]:
    """Inputs of every batch. Where the network `takes` one positional argument, a batch of two is (inputs, targets)."""
    for batch in _batches(batches, source):
        if takes == 1 and isinstance(batch, tuple | list) and len(batch) == 2:
            yield _checked(batch[0], source), batch[1]
        else:
            yield _checked(batch, source), None


def validation_batches(batches: Iterable[Any], like: TreeSpec, source: str) -> Iterator[Batch]:
    """Inputs and targets (or None) of every batch, by the structure of a calibration batch.

    Raises InputError where a batch is neither inputs alone nor inputs and targets.
    """
    for batch in _batches(batches, source):
        if _built(batch) == like:
            yield _checked(batch, source), None
        elif isinstance(batch, tuple | list) and len(batch) == 2 and _built(batch[0]) == like:
            yield _checked(batch[0], source), batch[1]
        elif isinstance(batch, tuple | list) and len(batch) > 2 and _built(batch[:-1]) == like:
            yield _checked(tuple(batch[:-1]), source), batch[-1]
        else:
            raise InputError(
                f"{source}: a validation batch must be (inputs, targets), or inputs alone, with inputs like those of a "
                f"calibration batch, {_text(like)}; got {_text(_built(batch))}"
            )


def joined(batches: Iterable[Batch], most: int | None, source: str) -> tuple[Samples, Any]:
    """Batches one after another up to `most` samples, no more of them read than it takes. Raises InputError where they
    are not alike, or some have targets and others none."""
    inputs: list[Samples] = []
    targets: list[Any] = []
    count = 0
    for samples, target in batches:
        if inputs and samples.spec != inputs[0].spec:
            first, other = _text(inputs[0].spec), _text(samples.spec)
            raise InputError(f"{source}: batches must be alike, but the first is {first}, another {other}")
        inputs.append(samples)
        targets.append(None if target is None else _targets(target, len(samples), source))
        count += len(samples)
        if most is not None and count >= most:
            break
    if not inputs:
        raise InputError(f"{source}: there are no batches: the iterable is empty")
    if len({target is None for target in targets}) > 1:
        raise InputError(f"{source}: some batches have targets, others none")
    try:
        everything = Samples.join(inputs, most)
        return everything, _rows_of(_joined_targets(targets), slice(most))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{source}: targets of batches are not alike ({error})") from None


def split_at(samples: Samples, targets: Any, count: int) -> tuple[Split, Split | None]:
    """The first `count` samples without targets, and the others, if any, with theirs."""
    first = Split.of(samples[:count])
    if len(samples) <= count:
        return first, None
    return first, Split.of(samples[count:], _rows_of(targets, slice(count, None)))


def _batches(batches: Iterable[Any], source: str) -> Iterator[Any]:
    """What the user's code gives, its errors in one line."""
    what = f"{source}: the iterable raised"
    end = object()
    with contained():
        made = guarded(lambda: iter(batches), what)
    while True:
        with contained():
            batch = guarded(lambda: next(made, end), what)
        if batch is end:
            return
        yield batch


def _built(batch: Any) -> TreeSpec:
    call = ((), dict(sorted(batch.items()))) if isinstance(batch, Mapping) else ((batch,), {})
    if isinstance(batch, tuple | list):
        call = (tuple(batch), {})
    return tree_flatten(call)[1]


def _checked(batch: Any, source: str) -> Samples:
    """A batch in main memory, without gradients, floats as float32. Raises InputError for NaN and for no tensors."""

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray | np.generic):
            leaf = torch.from_numpy(np.asarray(leaf))
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().cpu()
        leaf = leaf.float() if leaf.is_floating_point() else leaf
        if leaf.is_floating_point() and torch.isnan(leaf).any():
            raise InputError("a batch has NaN values")
        return leaf

    try:
        if isinstance(batch, Mapping):
            batch = dict(batch)
        return Samples.of(tree_map(plain, batch))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _targets(targets: Any, count: int, source: str) -> Any:
    """Targets of a batch of `count` samples: a pytree of tensors (N, …), or a list of N things."""
    targets = tree_map(lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf, targets)
    leaves = tree_leaves(targets)
    if isinstance(targets, list | tuple) and len(targets) == count:
        if all(isinstance(leaf, int | float) for leaf in targets):
            return torch.tensor(targets)
        if isinstance(targets, list) or not all(_rows(leaf, count) for leaf in leaves):
            return list(targets)
    if leaves and all(_rows(leaf, count) for leaf in leaves):
        return tuple(targets) if isinstance(targets, list) else targets
    raise InputError(
        f"{source}: targets must be tensors with as many rows as samples ({count}), or a list of as many things; got "
        f"{[list(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves][:4]}"
    )


def _rows(leaf: Any, count: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == count


def _joined_targets(targets: list[Any]) -> Any:
    if targets[0] is None:
        return None
    if isinstance(targets[0], list):
        return [thing for part in targets for thing in part]
    flat = [tree_flatten(part) for part in targets]
    if any(spec != flat[0][1] for _, spec in flat):
        raise ValueError(f"the first are {flat[0][1]}, others differ")
    leaves = [torch.cat([leaf.detach().cpu() for leaf in column]) for column in zip(*(p for p, _ in flat), strict=True)]
    return tree_unflatten(leaves, flat[0][1])


def _rows_of(targets: Any, rows: slice) -> Any:
    if targets is None:
        return None
    return targets[rows] if isinstance(targets, list) else tree_map(lambda leaf: leaf[rows], targets)


def _text(spec: TreeSpec) -> str:
    """The structure of a call in words: `tensor`, `(tensor, tensor)`, `{'x': tensor}`."""
    args, kwargs = tree_unflatten([_Word()] * spec.num_leaves, spec)
    if kwargs:
        return str(kwargs)
    return str(args[0]) if len(args) == 1 else str(args)


class _Word:
    def __repr__(self) -> str:
        return "tensor"
