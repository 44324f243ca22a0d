"""Quantizers on a network's activations: where they stand, and how they get their ranges.

A layer's input is quantized as a real integer runtime holds it: the tensor after the activation function or the
residual add. Whoever else reads that tensor in the same unit (the other operand of an add, a pooling) reads the
fake-quantized values too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, fx, nn

from recon.compute.arithmetic import device_of, fast, mixed_order, picked
from recon.graph.layers import Embedding, Layer
from recon.graph.network import Network
from recon.graph.patterns import only_call, relu_cap
from recon.graph.units import UNIT
from recon.quantizers.channels import ChannelValues
from recon.quantizers.inputs import Histogram, InputGrid, InputQuantizer

QUANTIZER = "input_quantizer"
RANGE_SAMPLES = 128
BATCH = 32


def quantizer_of(layer: nn.Module) -> InputQuantizer | None:
    """The quantizer of a layer's inputs; None where they stay float."""
    found = getattr(layer, QUANTIZER, None)
    assert found is None or isinstance(found, InputQuantizer)
    return found


def quantizers_of(layers: Iterable[nn.Module]) -> list[InputQuantizer]:
    """The input quantizers that there are."""
    return [found for found in map(quantizer_of, layers) if found is not None]


def input_scale(layer: nn.Module) -> Tensor | None:
    """A copy of the log-scale of a layer's inputs; None where they stay float."""
    quantizer = quantizer_of(layer)
    return None if quantizer is None else quantizer.log_scale.detach().clone()


def quantize_inputs(network: Network, bits: Mapping[str, int]) -> Network:
    """A copy of `network` with an input quantizer on every layer that `bits` names, but on embeddings, which read ids.

    The quantizers pass everything until they have a grid.
    """
    result = network.copy()
    bits = {name: width for name, width in bits.items() if not isinstance(result.layer(name), Embedding)}
    for name, width in bits.items():
        layer = result.layer(name)
        layer.add_module(QUANTIZER, InputQuantizer(width).to(layer.weight.device))
    _insert(result.module.graph, bits)
    _rectify_in_quantizers(result.module, bits)
    return result.rebuilt(result.module)


def _insert(graph: fx.Graph, bits: Mapping[str, int]) -> None:
    """Layers read their inputs through their quantizers; operations of the same unit that read the same tensor, and are
    no such layers, read it as the widest of the layers does."""
    order = {node: at for at, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        for unit in dict.fromkeys(user.meta.get(UNIT) for user in node.users):
            users = sorted((user for user in node.users if user.meta.get(UNIT) == unit), key=order.__getitem__)
            layers = [user for user in users if user.op == "call_module" and str(user.target) in bits]
            others = [user for user in users if user not in layers and user.op != "output"]
            rounded: dict[str, fx.Node] = {}
            for layer in layers:
                name = str(layer.target)
                if name not in rounded:
                    rounded[name] = _quantized(graph, node, name, users[0])
                layer.replace_input_with(node, rounded[name])
            if layers:
                widest = max(layers, key=lambda layer: bits[str(layer.target)])
                for other in others:
                    other.replace_input_with(node, rounded[str(widest.target)])


def _quantized(graph: fx.Graph, node: fx.Node, name: str, first: fx.Node) -> fx.Node:
    """The tensor of `node` behind the quantizer of layer `name`, right before its `first` reader in the unit: units
    keep their order."""
    with graph.inserting_before(first):
        rounded = graph.call_module(f"{name}.{QUANTIZER}", (node,))
    rounded.meta = {**node.meta, UNIT: first.meta[UNIT]}
    return rounded


def _rectify_in_quantizers(module: fx.GraphModule, bits: Mapping[str, int]) -> None:
    """Where nothing but the quantizer of one call of a layer reads a ReLU of its unit, the quantizer does its work."""
    for name in bits:
        rounded = only_call(module, f"{name}.{QUANTIZER}")
        if rounded is None or [user.target for user in rounded.users] != [name]:
            continue
        (relu,) = rounded.all_input_nodes
        cap = relu_cap(relu)
        if cap is not None and len(relu.users) == 1 and relu.meta.get(UNIT) == rounded.meta.get(UNIT):
            quantizer = quantizer_of(module.get_submodule(name))
            assert quantizer is not None
            quantizer.cap = cap
            rounded.replace_input_with(relu, relu.all_input_nodes[0])
            module.graph.erase_node(relu)


@torch.no_grad()
def hold_below_caps(module: fx.GraphModule, layers: Mapping[str, Layer]) -> None:
    """Makes steps behind a ReLU that cuts off so small that the range of codes does it, and no code lies beyond."""
    for name, layer in layers.items():
        quantizer, call = quantizer_of(layer), only_call(module, f"{name}.{QUANTIZER}")
        if quantizer is None or call is None:
            continue
        cap = quantizer.cap if quantizer.cap is not None else relu_cap(call.all_input_nodes[0])
        if cap is not None and math.isfinite(cap):
            quantizer.log_scale.clamp_(max=math.log(cap / (2**quantizer.bits - 1)))


@contextmanager
def _watched_inputs(layers: Mapping[str, Layer], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While it is open, what `layers` are given before it is quantized is shown to `see`."""

    def show(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        see(name, module.activated(args[0]) if isinstance(module, InputQuantizer) else args[0])

    watched = {name: quantizer_of(layer) or layer for name, layer in layers.items()}
    hooks = [module.register_forward_pre_hook(partial(show, name)) for name, module in watched.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def watch_inputs(
    module: nn.Module, layers: Mapping[str, Layer], leaves: Sequence[Tensor]
) -> dict[str, Histogram | ChannelValues]:
    """What `layers` receive, before it is rounded, while `module` runs on tensors (N, …)."""
    seen = {name: _observer(layer) for name, layer in layers.items()}
    where = device_of(module)
    with _watched_inputs(layers, lambda name, x: seen[name].add(x)), fast(where):
        for pick in torch.split(mixed_order(leaves[0])[:RANGE_SAMPLES], BATCH):
            module(*picked(leaves, pick, where))
    return seen


def _observer(layer: Layer) -> Histogram | ChannelValues:
    """What looks at the inputs of a layer to find their grid."""
    if not layer.channel_steps:
        return Histogram()
    power = layer.weight.detach().square().view(layer.groups, -1).sum(1)
    return ChannelValues(power)


def find_ranges(module: nn.Module, layers: Mapping[str, Layer], leaves: Sequence[Tensor]) -> None:
    """Gives the input quantizers of `layers` the grids that suit what they see while `module` runs on tensors
    (N, …)."""
    quantizers = {name: quantizer for name, layer in layers.items() if (quantizer := quantizer_of(layer)) is not None}
    if quantizers:
        seen = watch_inputs(module, {name: layers[name] for name in quantizers}, leaves)
        for name, quantizer in quantizers.items():
            quantizer.set_grid(seen[name].grid(quantizer.bits))


def frozen_inputs(layers: Mapping[str, Layer]) -> dict[str, InputGrid]:
    """The grids of all input quantizers, by layer name."""
    found = {name: quantizer_of(layer) for name, layer in layers.items()}
    return {name: quantizer.freeze() for name, quantizer in found.items() if quantizer is not None}
