"""What the last operations of a captured graph say of its outputs: logits, probabilities, or their logarithms."""

from __future__ import annotations

from torch import fx

from mpsearch.tasks.parts import Ending
from recon.graph.network import Network
from recon.graph.nodes import aten, packet_of
from recon.graph.units import is_layer

_VIEWS = (aten.reshape, aten.view, aten.flatten, aten.squeeze, aten.unsqueeze, aten.contiguous, aten.clone, aten.to)
_CUTS = (aten.slice, aten.select)
_SOFTMAX = (aten.softmax, aten._softmax)
_LOG_SOFTMAX = (aten.log_softmax, aten._log_softmax)


def endings(network: Network) -> dict[str, Ending]:
    """By the path of an output, its form where the graph ends in a layer, a softmax over dimension 1, or a sigmoid."""
    (output,) = (node for node in network.module.graph.nodes if node.op == "output")
    found = {name: _ending(network, node) for name, node in zip(network.names, output.args[0], strict=True)}
    return {name: ending for name, ending in found.items() if ending is not None}


def _ending(network: Network, node: object) -> Ending | None:
    whole = True
    while isinstance(node, fx.Node) and packet_of(node) in (*_VIEWS, *_CUTS):
        whole &= packet_of(node) in _VIEWS
        node = node.args[0]
    if not isinstance(node, fx.Node):
        return None
    operation = packet_of(node)
    if is_layer(network.module, node):
        return "logits"
    if operation == aten.sigmoid:
        return "sigmoid"
    if not whole:
        return None  # some of the classes of a softmax do not add up to 1
    if operation in _SOFTMAX:
        return "probabilities" if _over_classes(node) else None
    if operation in _LOG_SOFTMAX:
        return "log-probabilities" if _over_classes(node) else None
    source = node.args[0] if operation == aten.log and node.args else None
    of_softmax = isinstance(source, fx.Node) and packet_of(source) in _SOFTMAX and _over_classes(source)
    return "log-probabilities" if of_softmax else None


def _over_classes(softmax: fx.Node) -> bool:
    """Whether it is over dimension 1, where the classes are."""
    dim = softmax.args[1] if len(softmax.args) > 1 else softmax.kwargs.get("dim")
    return isinstance(dim, int) and dim % len(softmax.meta["shape"]) == 1
