"""How a network is called, as text: the structure of its arguments, with the shapes and types of their tensors.

The text is JSON: `[[positional, …], {"keyword": …}]`. A tensor is `"float32[3,224,224]"`, the shape that of one sample;
a dict is an object, a list an array, a tuple an array that begins with `"()"`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from hwmodel.errors import InputError
from hwmodel.json_text import parse_json
from hwmodel.size import as_json
from mpsearch.export.header import shown
from recon.graph.network import Network
from recon.graph.samples import Samples

COUNT = 3  # samples in an example
MOST_VALUES = 2**26  # in a sample: an image of 4096 × 4096 pixels has fewer
_DEEPEST = 32
_MOST_DIMENSIONS = 16
_TUPLE = "()"
_LEAF = re.compile(r"([a-z]+[0-9]*)\[((?:[0-9]{1,9}(?:,[0-9]{1,9})*)?)\]", re.ASCII)
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
        torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
    )
}  # fmt: skip


def call_text(network: Network) -> str:
    """The text for a captured network. Raises InputError where it is not called with tuples, lists and dicts."""
    leaves = [
        f"{str(dtype).removeprefix('torch.')}[{','.join(map(str, shape))}]"
        for dtype, shape in zip(network.dtypes, network.table.inputs, strict=True)
    ]
    args, kwargs = tree_unflatten(leaves, network.inputs)
    text = as_json([[_written(arg) for arg in args], {key: _written(arg) for key, arg in kwargs.items()}])
    return text.decode()


def _written(tree: Any) -> Any:
    if isinstance(tree, str):
        return tree
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {key: _written(part) for key, part in tree.items()}
    if type(tree) is list:
        return [_written(part) for part in tree]
    if type(tree) is tuple:
        return [_TUPLE, *map(_written, tree)]
    raise InputError(
        f"a packed file keeps inputs in tuples, lists and dicts with text as keys, not in a {type(tree).__name__}; "
        "wrap the model"
    )


def example(text: str) -> Samples:
    """Three samples for a call as `call_text` describes it: noise, the same always, and zeros for integers.

    Raises InputError for any other text, and for samples that are absurdly large, before anything is allocated.
    """
    try:
        call = parse_json(text)
    except ValueError:
        raise InputError(f"the structure of its inputs is no JSON: {shown(text)}") from None
    if not (isinstance(call, list) and len(call) == 2 and isinstance(call[0], list) and isinstance(call[1], dict)):
        raise InputError(f"its inputs must be positional and keyword arguments, got {shown(text)}")
    leaves = [leaf for part in (*call[0], *call[1].values()) for leaf in _leaves(part, 0)]
    if sum(math.prod(shape) for _, shape in leaves) > MOST_VALUES:
        raise InputError(f"its inputs are larger than {MOST_VALUES:,} values a sample: {shown(text)}")
    generator = torch.Generator().manual_seed(0)
    args = tuple(_made(part, generator) for part in call[0])
    tensors, spec = tree_flatten((args, {key: _made(part, generator) for key, part in call[1].items()}))
    return Samples(tuple(tensors), spec)


def _leaves(tree: Any, depth: int) -> Iterator[tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of every tensor. Raises InputError for what is no tree of tensors."""
    if isinstance(tree, str) and tree != _TUPLE:
        yield _leaf(tree)
    elif isinstance(tree, dict | list) and depth < _DEEPEST:
        parts = list(tree.values()) if isinstance(tree, dict) else tree
        for part in parts[1:] if parts[:1] == [_TUPLE] and isinstance(tree, list) else parts:
            yield from _leaves(part, depth + 1)
    else:
        raise InputError(f"its inputs must be tensors in tuples, lists and dicts, got {shown(tree)}")


def _leaf(text: str) -> tuple[torch.dtype, tuple[int, ...]]:
    found = _LEAF.fullmatch(text)
    shape = tuple(map(int, found[2].split(","))) if found and found[2] else ()
    if found is None or found[1] not in _DTYPES or len(shape) > _MOST_DIMENSIONS:
        raise InputError(f"a tensor of its inputs must look like float32[3,224,224], got {shown(text)}")
    return _DTYPES[found[1]], shape


def _made(tree: Any, generator: torch.Generator) -> Any:
    if isinstance(tree, str):
        return _tensor(*_leaf(tree), generator)
    if isinstance(tree, dict):
        return {key: _made(part, generator) for key, part in tree.items()}
    if tree[:1] == [_TUPLE]:
        return tuple(_made(part, generator) for part in tree[1:])
    return [_made(part, generator) for part in tree]


def _tensor(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(COUNT, *shape, generator=generator).to(dtype)
    return torch.zeros(COUNT, *shape, dtype=dtype)
