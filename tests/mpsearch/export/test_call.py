"""The structure of calls as text."""

from __future__ import annotations

import collections
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import NETS
from torch import nn
from torch.utils._pytree import tree_flatten

from hwmodel import InputError
from mpsearch.export.call import call_text, example
from recon.graph.network import capture
from recon.graph.samples import Samples

LEAVES = st.tuples(
    st.sampled_from(["float32", "int64", "bool", "bfloat16", "uint8"]), st.lists(st.integers(0, 4), max_size=4)
).map(lambda leaf: f"{leaf[0]}[{','.join(map(str, leaf[1]))}]")
TREES = st.recursive(
    LEAVES,
    lambda parts: (
        st.dictionaries(st.text(), parts, max_size=3)
        | st.lists(parts, max_size=3)
        | st.lists(parts, max_size=3).map(lambda found: ["()", *found])
    ),
    max_leaves=8,
)


def described(samples: Samples) -> Any:
    """What `call_text` says of a network that takes such samples, from the samples alone."""
    leaves = iter(samples.leaves)

    def written(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: written(part) for key, part in tree.items()}
        if isinstance(tree, list | tuple):
            return [*(["()"] if isinstance(tree, tuple) else []), *map(written, tree)]
        leaf = next(leaves)
        return f"{str(leaf.dtype).removeprefix('torch.')}[{','.join(map(str, leaf.shape[1:]))}]"

    args, kwargs = samples.call
    return [[written(arg) for arg in args], {key: written(arg) for key, arg in kwargs.items()}]


@given(st.lists(TREES, max_size=3), st.dictionaries(st.text(), TREES, max_size=3))
def test_any_tree_of_tensors_comes_back(args: list[Any], kwargs: dict[str, Any]) -> None:
    text = json.dumps([args, kwargs])
    if "[" not in text.replace("[]", "").replace('["()"]', "")[1:] or '"float32' not in text:
        return
    samples = example(text)
    assert len(samples) == 3
    assert described(samples) == [args, kwargs]


@pytest.mark.parametrize("name", NETS)
def test_an_example_is_what_the_network_takes(name: str) -> None:
    make, data = NETS[name]
    network = capture(make().eval(), data(), name)
    samples = example(call_text(network))
    assert samples.spec == tree_flatten(Samples.of(data()).call)[1]
    assert [leaf.dtype for leaf in samples.leaves] == [leaf.dtype for leaf in Samples.of(data()).leaves]
    assert not any(leaf.any() for leaf in samples.leaves if not leaf.is_floating_point())
    assert all(leaf.std() > 0.3 for leaf in samples.leaves if leaf.is_floating_point())
    assert all(map(torch.equal, samples.leaves, example(call_text(network)).leaves))


@given(st.text() | st.recursive(st.none() | st.text() | st.floats() | st.integers(), st.lists).map(json.dumps))
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        example(text)


@pytest.mark.parametrize(
    "call",
    [
        '[["float32[99999,99999,9]"],{}]', '[["float32[999999999999999]"],{}]', '[["float32[-1]"],{}]',
        '[["float99[1]"],{}]', '[["qint8[1]"],{}]', '[[NaN],{}]', "[[], {}]", '[["()"], {}]', '[["float32[1]"]]',
        "[" * 100_000, "[[" + "[" * 900 + '"float32[1]"' + "]" * 900 + "],{}]", f'[[{"1" * 5000}],{{}}]',
        '[["float32[' + ",".join("1" * 99) + ']"],{}]',
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_absurd_calls_are_refused_at_once(call: str) -> None:
    with pytest.raises(InputError):
        example(call)


class OfPair(nn.Module):
    """Takes a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Any) -> torch.Tensor:
        return self.layer(x["x"])


def test_other_structures_are_refused_in_one_line() -> None:
    network = capture(OfPair(), (collections.OrderedDict(x=torch.zeros(2, 4)),))
    with pytest.raises(InputError, match="not in a OrderedDict"):
        call_text(network)
