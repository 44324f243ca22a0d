"""Matching the names that another tool has for layers with those of a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Words = tuple[str, ...]
NOT_OF_THE_NAME = {"bn", "weight", "kernel"}  # what tools add: a folded batch norm, the tensor


@dataclass(frozen=True, slots=True)
class Matches:
    """`found` maps layers to names of the other tool; `missing` are layers without, `left` names without a layer."""

    found: dict[str, str]
    missing: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def renamed(self) -> tuple[str, ...]:
        """The layers whose other name is not their own."""
        return tuple(layer for layer, name in self.found.items() if layer != name)


def match(layers: Sequence[str], names: Sequence[str]) -> Matches:
    """Pairs layers with names, the surest first: equal, equal words, one the end of the other, one within the other.

    Words are what stands between dots, slashes and underscores; `within` means in the same order with gaps. A pair is
    made only where neither side has a second partner among what is left.
    """
    found: dict[str, str] = {name: name for name in names if name in set(layers)}
    for alike in (Words.__eq__, _one_ends_the_other, _one_within_the_other):
        open_layers = [layer for layer in layers if layer not in found]
        open_names = [name for name in names if name not in found.values()]
        found |= _unique(open_layers, open_names, alike)
    missing = tuple(layer for layer in layers if layer not in found)
    taken = set(found.values())
    return Matches(
        {layer: found[layer] for layer in layers if layer in found},
        missing,
        tuple(name for name in names if name not in taken),
    )


def words_of(name: str) -> Words:
    """`features_1/conv.0_bn` → features, 1, conv, 0."""
    words = [word for word in re.split(r"[._/]+", name.lower()) if word]
    while len(words) > 1 and words[-1] in NOT_OF_THE_NAME:
        words.pop()
    while len(words) > 1 and words[0] in NOT_OF_THE_NAME:
        words.pop(0)
    return tuple(words)


def _unique(layers: Sequence[str], names: Sequence[str], alike: Callable[[Words, Words], bool]) -> dict[str, str]:
    """Layers and names that are alike and have no second partner on either side."""
    known = {name: words_of(name) for name in names}
    partners = {
        layer: [name for name, words in known.items() if words and alike(words_of(layer), words)] for layer in layers
    }
    count: dict[str, int] = {}
    for found in partners.values():
        for name in found:
            count[name] = count.get(name, 0) + 1
    return {layer: found[0] for layer, found in partners.items() if len(found) == 1 and count[found[0]] == 1}


def _one_ends_the_other(a: Words, b: Words) -> bool:
    short, long = sorted((a, b), key=len)
    return long[len(long) - len(short) :] == short


def _one_within_the_other(a: Words, b: Words) -> bool:
    short, long = sorted((a, b), key=len)
    rest = iter(long)
    return all(word in rest for word in short)
