"""Matrix products of two activations: counted, and not quantized."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx
from torch.utils._pytree import tree_leaves

from hwmodel.layer import Product
from recon.graph.nodes import STACK, aten, packet_of
from recon.graph.units import repeated_nodes

_MATMULS = (aten.matmul, aten.bmm, aten.mm, aten.baddbmm, aten.einsum, aten.scaled_dot_product_attention)
_WITH_ADDEND = (aten.baddbmm, aten.addmm)
_LAYER_LIKE = (aten.linear, aten.conv1d, aten.conv2d, aten.conv3d, aten.addmm)


def products(module: fx.GraphModule) -> Iterator[Product]:
    """The matrix products of a captured module whose factors both depend on the samples, and operations of layers
    whose weights do."""
    repeated = repeated_nodes(module.graph)
    for node in module.graph.nodes:
        packet = packet_of(node)
        if node in repeated or packet not in (*_MATMULS, *_LAYER_LIKE):
            continue
        arguments = tree_leaves((node.args, node.kwargs))  # one tensor may be several factors
        sources = [source for source in arguments if isinstance(source, fx.Node) and "shape" in source.meta]
        shapes = [[abs(size) for size in source.meta["shape"]] for source in sources]  # samples count as one
        if packet in _WITH_ADDEND:
            shapes = shapes[1:]
        out = [abs(size) for size in node.meta["shape"]]
        where = node.meta.get(STACK) or (node.name,)
        yield Product(where[-1], str(packet).removeprefix("aten."), _macs(node, shapes, out))


def _macs(node: fx.Node, shapes: list[list[int]], out: list[int]) -> int:
    packet = packet_of(node)
    if packet is aten.scaled_dot_product_attention:
        query, key, value = shapes[:3]
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if packet is aten.einsum:
        return _einsum_macs(str(node.args[0]), shapes)
    if packet in _LAYER_LIKE and packet is not aten.addmm:
        return math.prod(out) * math.prod(shapes[1][1:])
    return math.prod(out) * shapes[0][-1]


def _einsum_macs(equation: str, shapes: list[list[int]]) -> int:
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        free = len(shape) - len(term.replace("...", ""))
        names = term.replace("...", "".join(f"<{at}>" for at in range(free)))
        labels = list(_labels(names))
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _labels(term: str) -> Iterator[str]:
    at = 0
    while at < len(term):
        end = term.index(">", at) + 1 if term[at] == "<" else at + 1
        yield term[at:end]
        at = end
