"""Where the output of a layer matters: where the activation function behind it has a slope.

Half of what a layer followed by ReLU6 gives is cut off, and so are the errors there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx

from recon.graph.network import Network
from recon.graph.nodes import aten, packet_of
from recon.graph.patterns import only_call

Activation = Callable[[Tensor], Tensor]

FLOOR = 0.3  # of the weight: rounding moves what is cut off
FUNCTIONS = (aten.relu, aten.relu6, aten.hardtanh, aten.hardswish, aten.silu, aten.gelu)


def activation_after(module: fx.GraphModule, name: str) -> Activation | None:
    """The activation function that alone reads the output of layer `name`, called once in `module`; None where there is
    none, or where it is not known."""
    node = only_call(module, name)
    if node is None or len(node.users) != 1:
        return None
    (reader,) = node.users
    if packet_of(reader) not in FUNCTIONS or reader.all_input_nodes != [node]:
        return None
    function, further = reader.target, reader.args[1:]
    assert callable(function)
    return lambda z: function(z, *further, **reader.kwargs)


def activations(network: Network) -> Mapping[str, Activation]:
    """The activation functions behind the layers of a network, as far as they are known."""
    found = {name: activation_after(unit.module, name) for unit in network.units for name in unit.layers}
    return {name: activation for name, activation in found.items() if activation is not None}


def slope_weight(z: Tensor, activation: Activation) -> Tensor:
    """How much errors of outputs z (…) count, at most 1: the squared slope of the activation function there."""
    with torch.enable_grad():
        z = z.detach().float().requires_grad_()
        (slope,) = torch.autograd.grad(activation(z.clone()).sum(), z)
    return FLOOR + (1 - FLOOR) * slope.square().clamp_max(1)
