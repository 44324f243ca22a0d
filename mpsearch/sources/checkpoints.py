"""What a loaded checkpoint holds: the named tensors of a network, under whatever keys and prefixes training put them.

Layouts: a bare state dict; `state_dict`, `model`, `net`, `model_state_dict` and the like; timm's and others' `ema`
beside or instead of them; Lightning's `state_dict` of `model.…`; prefixes of DataParallel (`module.`) and torch.compile
(`_orig_mod.`); counters that profilers leave behind.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwmodel.errors import InputError

State = OrderedDict[str, Tensor]

_DEPTH = 4
_SHARE = 0.1  # a dict with fewer than this share of the values of the largest is no network: a loss, a meter
_TRAINING = re.compile(r"optim|sched|scaler|rng|callback|loop|hyper|arg|config|history|metric|amp$", re.IGNORECASE)
_COUNTERS = {"total_ops", "total_params", "n_averaged"}  # thop's, and torch's AveragedModel
_COMPILED = "_orig_mod."
# DenseNet's published file predates the names of its modules ("norm.1" is "norm1" now).
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def find_state(loaded: Any, source: str, key: str | None = None) -> tuple[State, tuple[str, ...]]:
    """The named tensors of a loaded checkpoint, floats as float32, and notes on where they were found.

    `key` says where they are: keys joined by dots, at the end a prefix of names where one is wanted. Raises InputError
    where there is nothing of the kind, or several that may be meant.
    """
    if not isinstance(loaded, Mapping):
        raise InputError(f"weights {source} must hold named tensors, got a {type(loaded).__name__}")
    if not loaded:
        raise InputError(f"weights {source} must hold named tensors, got nothing")
    if key is not None:
        return _state(*_at(loaded, key, source))
    found = dict(_candidates(loaded, "", 0))
    most = max((_size(part) for part in found.values()), default=0)
    found = {path: part for path, part in found.items() if _size(part) >= _SHARE * most}
    if not found:
        raise InputError(f"weights {source} must hold named tensors, but there are only {_kinds(loaded)}")
    if len(found) > 1:
        listed = ", ".join(f"{path or '(the file itself)'} ({_tensors(part)} tensors)" for path, part in found.items())
        raise InputError(f"weights {source} hold several networks: {listed}; say which with --weights-key")
    ((path, part),) = found.items()
    return _state(part, path)


def align(state: State, own: Collection[str], source: str) -> tuple[State, tuple[str, ...]]:
    """The state under a network's `own` names: prefixes that only one of them has are taken off or put before.

    Tensors without the prefix that the network's have are left out, as are counters of profilers that it has not; both
    are noted. Raises InputError where two prefixes fit as well, such as those of a student and its teacher.
    """
    notes: list[str] = []
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    counters = [name for name in state if name not in own and name.rpartition(".")[2] in _COUNTERS]
    if counters:
        notes.append(f"{len(counters)} counters of profiling or averaging in {source} are left out")
        state = _renamed(state, {name: name for name in state if name not in set(counters)}, {})
    if any(_COMPILED in name for name in state) and not any(_COMPILED in name for name in own):
        notes.append(f"names in {source} lose {_COMPILED!r}")
        state = _renamed(state, {name: name.replace(_COMPILED, "") for name in state}, {_COMPILED: ""})
    here = sum(name in state for name in wanted)
    if here == len(wanted) or not state:
        return state, tuple(notes)
    off, on = _prefixes(wanted, state), _prefixes(list(state), own)
    best = max([*off.values(), *on.values()], default=0)
    if best <= here:
        return state, tuple(notes)
    equal = [prefix for prefix, count in off.items() if count == best]
    if len(equal) > 1:
        listed = ", ".join(repr(prefix) for prefix in equal)
        raise InputError(f"weights {source} hold several networks, by the prefixes {listed}; say which: --weights-key")
    if equal:
        (prefix,) = equal
        inside = {name: name.removeprefix(prefix) for name in state if name.startswith(prefix)}
        left = [name for name in state if name not in inside]
        rest = f"; {len(left)} other tensors are left out (first: {left[0]})" if left else ""
        notes.append(f"names in {source} lose the prefix {prefix!r}{rest}")
        return _renamed(state, inside, {prefix: ""}), tuple(notes)
    prefix = next(prefix for prefix, count in on.items() if count == best)
    notes.append(f"names in {source} get the prefix {prefix!r}")
    return _renamed(state, {name: prefix + name for name in state}, {"": prefix}), tuple(notes)


def _prefixes(names: list[str], longer: Collection[str]) -> dict[str, int]:
    """How many of `names` are among `longer` ones behind a prefix, by prefix; only prefixes that end with a dot."""
    by_last: dict[str, list[str]] = {}
    for name in longer:
        by_last.setdefault(name.rpartition(".")[2], []).append(name)
    found: dict[str, int] = {}
    for name in names[:64]:  # enough to meet every prefix; each is then counted over all names
        for other in by_last.get(name.rpartition(".")[2], ()):
            if other.endswith(f".{name}"):
                found.setdefault(other.removesuffix(name), 0)
    known = set(longer)
    return {prefix: sum(prefix + name in known for name in names) for prefix in found}


def _renamed(state: State, names: Mapping[str, str], replace: Mapping[str, str]) -> State:
    """The tensors of `names` under new names; the versions of modules, by which torch renames tensors, go along."""
    found: State = OrderedDict((new, state[old]) for old, new in names.items())
    versions: Mapping[str, Any] | None = getattr(state, "_metadata", None)
    if versions is not None:
        for old, new in replace.items():
            versions = {_moved(path, old, new): value for path, value in versions.items()}
        found._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    return found


def _moved(path: str, old: str, new: str) -> str:
    """A module's path after `old` became `new`; both end with a dot, or are empty."""
    moved = f"{path}.".replace(old, new, 1) if old else f"{new}{path}."
    return moved.strip(".")


def _candidates(part: Mapping[Any, Any], path: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dict in a checkpoint that may be a network's, by its path; what belongs to training is passed over."""
    if any(isinstance(key, str) and _is_array(value) and value.ndim for key, value in part.items()):
        yield path, part
    for key, value in part.items():
        inside = isinstance(key, str) and isinstance(value, Mapping) and depth < _DEPTH
        if inside and not _TRAINING.search(key):
            yield from _candidates(value, f"{path}.{key}".lstrip("."), depth + 1)


def _at(loaded: Mapping[Any, Any], key: str, source: str) -> tuple[Mapping[str, Any], str]:
    part, rest = loaded, key
    while rest:
        starts = [name for name in part if isinstance(name, str) and f"{rest}.".startswith(f"{name}.")]
        inner = [name for name in starts if isinstance(part[name], Mapping)]
        if not inner:
            break
        name = max(inner, key=len)
        part, rest = part[name], rest[len(name) + 1 :]
    if rest:
        prefix = f"{rest.rstrip('.')}."
        named = {name: value for name, value in part.items() if isinstance(name, str) and name.startswith(prefix)}
        if not named:
            known = ", ".join(dict.fromkeys(str(name).partition(".")[0] for name in part))
            raise InputError(f"weights {source}: nothing is at --weights-key {key}; there are {known[:200]}")
        part = {name.removeprefix(prefix): value for name, value in named.items()}
    if not any(map(_is_array, part.values())):
        raise InputError(f"weights {source}: --weights-key {key} holds no tensors, but {_kinds(part)}")
    return part, key


def _state(part: Mapping[str, Any], path: str) -> tuple[State, tuple[str, ...]]:
    """The tensors of a dict that was found at `path`."""
    state: State = OrderedDict()
    others = []
    for name, value in part.items():
        if not isinstance(name, str) or not _is_array(value):
            others.append(str(name))
            continue
        tensor = torch.as_tensor(value)
        state[_DENSENET.sub(r"\1\2", name)] = tensor.float() if tensor.is_floating_point() else tensor
    if hasattr(part, "_metadata"):  # versions of the modules: torch renames the tensors of older ones
        state._metadata = part._metadata  # type: ignore[attr-defined]
    notes = [f"weights are those under {path!r}"] if path else []
    if others:
        notes.append(f"{len(others)} entries among the weights are no tensors and left out (first: {others[0]})")
    return state, tuple(notes)


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray | np.number)


def _size(part: Mapping[str, Any]) -> int:
    return sum(int(np.prod(value.shape)) for value in part.values() if _is_array(value))


def _tensors(part: Mapping[str, Any]) -> int:
    return sum(map(_is_array, part.values()))


def _kinds(part: Mapping[Any, Any]) -> str:
    shown = [f"{key!r} (a {type(value).__name__})" for key, value in list(part.items())[:4]]
    return ", ".join(shown) + (", …" if len(part) > 4 else "")
