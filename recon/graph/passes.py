"""Small passes over a freshly exported graph: checks and identities go, views take any layout."""

from __future__ import annotations

import torch
from torch import fx

from recon.graph.nodes import aten, constant_nodes, packet_of

_IDENTITIES = (aten.alias, aten.detach, aten.lift_fresh_copy, aten.dropout, aten.feature_dropout, aten.detach_)
_VIEWS = (aten.view, aten._unsafe_view, aten.reshape)
_PRODUCTS = (aten.matmul, aten.mm)
_OF_ONE_TYPE = (
    *(aten.bilinear, aten.dot, aten.mv, aten.addmv, aten.lerp, aten.index_put, aten.index_add, aten.masked_scatter),
    *(aten.scatter, aten.scatter_add, aten.scatter_reduce, aten.embedding_bag, aten._embedding_bag),
)
_CHECKS = ("_assert", "sym_constrain_range", "_guards_fn")


def drop_checks(module: fx.GraphModule) -> None:
    """Assertions about shapes and values are gone."""
    for node in reversed(list(module.graph.nodes)):
        if node.op in ("call_function", "call_module") and any(check in str(node.target) for check in _CHECKS):
            module.graph.erase_node(node)


def drop_identities(module: fx.GraphModule) -> None:
    """What hands on its input in eval mode is gone."""
    for node in list(module.graph.nodes):
        training = len(node.args) > 2 and node.args[2] is True
        if packet_of(node) in _IDENTITIES and not training:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def views_of_any_layout(module: fx.GraphModule) -> None:
    """Views become reshapes, which channels-last maps can have too, and infer the number of samples where they can."""
    for node in module.graph.nodes:
        if packet_of(node) not in _VIEWS:
            continue
        node.target = aten.reshape.default
        source, shape = node.args
        open_sizes = [at for at, size in enumerate(shape) if isinstance(size, fx.Node) or size == -1]
        if len(open_sizes) == 1:
            node.args = (source, [-1 if at in open_sizes else size for at, size in enumerate(shape)])
    module.graph.eliminate_dead_code()


def in_single_precision(module: fx.GraphModule) -> None:
    """Operations that take tensors of one type alone read float32: in bfloat16 arithmetic, layers write another."""
    graph, constants = module.graph, constant_nodes(module.graph)
    for node in list(graph.nodes):
        picky = packet_of(node) in _OF_ONE_TYPE or "deform_conv2d" in str(node.target)
        for source in node.all_input_nodes if picky else ():
            if source in constants or not source.meta.get("floating"):
                continue
            with graph.inserting_before(node):
                single = graph.call_function(aten._to_copy.default, (source,), {"dtype": torch.float32})
            single.meta = dict(source.meta)
            node.replace_input_with(source, single)


def products_as_linear(module: fx.GraphModule) -> None:
    """Products of a tensor with a matrix of parameters are linear maps, however they are written (`x @ w`, addmm)."""
    graph, constants = module.graph, constant_nodes(module.graph)
    for node in list(graph.nodes):
        packet, bias = packet_of(node), None
        if packet in _PRODUCTS and len(node.args) == 2 and not node.kwargs:
            x, weight = node.args
        elif packet is aten.addmm and len(node.args) == 3 and not node.kwargs:
            bias, x, weight = node.args
        else:
            continue
        if not isinstance(weight, fx.Node) or weight not in constants or x in constants:
            continue
        if len(weight.meta["shape"]) != 2 or len(x.meta["shape"]) < 2:
            continue
        if bias is not None and (bias not in constants or len(bias.meta["shape"]) != 1):
            continue
        with graph.inserting_before(node):
            turned = graph.call_function(aten.t.default, (weight,))
            linear = graph.call_function(aten.linear.default, (x, turned) if bias is None else (x, turned, bias))
        turned.meta, linear.meta = {"counts": False, "shape": weight.meta["shape"][::-1]}, dict(node.meta)
        node.replace_all_uses_with(linear)
        graph.erase_node(node)
