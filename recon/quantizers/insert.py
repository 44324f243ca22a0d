"""Quantizers on a network's activations: where they stand, and how they get their ranges.

A layer's input is quantized as a real integer runtime holds it: the tensor after the activation function or the
residual add. Whoever else reads that tensor (the other operand of an add, a pooling) reads the rounded values too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, fx, nn

from recon.compute.arithmetic import channels_last, device_of, fast, mixed_order
from recon.graph.layers import Layer
from recon.graph.network import Network
from recon.graph.patterns import only_call, relu_cap
from recon.quantizers.inputs import Histogram, InputGrid, InputQuantizer

QUANTIZER = "input_quantizer"
RANGE_IMAGES = 128
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


def activated_input(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer's quantizer is to round when the layer is given x (N, …); x itself where there is none."""
    quantizer = quantizer_of(layer)
    return x if quantizer is None else quantizer.activated(x)


def quantize_inputs(network: Network, bits: Mapping[str, int]) -> Network:
    """A copy of `network` with an input quantizer on every layer that `bits` names.

    The quantizers pass everything until they have a grid. In a network that is not chained only the layers themselves
    read rounded values.
    """
    result = network.copy()
    for name in bits:
        layer = result.layer(name)
        layer.add_module(QUANTIZER, InputQuantizer(bits[name]).to(layer.weight.device))
        layer.register_forward_pre_hook(_quantize)
    if not bits or not result.chained:
        return result
    for unit in result.units:
        assert isinstance(unit.module, fx.GraphModule)
        _round_for_others(unit.module.graph, bits)
        _rectify_in_quantizers(unit.module, bits)
        unit.module.recompile()
    return replace(result, model=result.joined())


def _quantize(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    quantizer = quantizer_of(layer)
    return args if quantizer is None else (quantizer(args[0]), *args[1:])


def _round_for_others(graph: fx.Graph, bits: Mapping[str, int]) -> None:
    """Operations that read a quantized layer's input, and are no layers, read it as the widest of the layers does."""
    for node in list(graph.nodes):
        layers = [user for user in node.users if user.op == "call_module" and str(user.target) in bits]
        others = [user for user in node.users if user not in layers]
        if layers and others:
            widest = max(layers, key=lambda layer: bits[str(layer.target)])
            with graph.inserting_after(node):
                rounded = graph.call_module(f"{widest.target}.{QUANTIZER}", (node,))
            for other in others:
                other.replace_input_with(node, rounded)


def _rectify_in_quantizers(module: fx.GraphModule, bits: Mapping[str, int]) -> None:
    """Where nothing but one call of a quantized layer reads a ReLU, the layer's quantizer does its work."""
    for reader in list(module.graph.nodes):
        if reader.target not in bits or only_call(module, str(reader.target)) != reader:
            continue
        (relu,) = reader.all_input_nodes
        cap = relu_cap(module, relu)
        if cap is not None and len(relu.users) == 1:
            quantizer = quantizer_of(module.get_submodule(str(reader.target)))
            assert quantizer is not None
            quantizer.cap = cap
            reader.replace_input_with(relu, relu.all_input_nodes[0])
            module.graph.erase_node(relu)


@torch.no_grad()
def input_histograms(module: nn.Module, layers: Mapping[str, Layer], x: Tensor) -> dict[str, Histogram]:
    """What `layers` receive, before it is rounded, while `module` runs on x (N, …)."""
    seen = {name: Histogram() for name in layers}

    def see(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[name].add(activated_input(layer, args[0]))

    hooks = [layer.register_forward_pre_hook(partial(see, name), prepend=True) for name, layer in layers.items()]
    where = device_of(module)
    try:
        with fast(where):
            for pick in torch.split(mixed_order(x)[:RANGE_IMAGES], BATCH):
                module(channels_last(x[pick].to(where)))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def find_ranges(module: nn.Module, layers: Mapping[str, Layer], x: Tensor) -> None:
    """Gives the input quantizers of `layers` the grids that suit what they see while `module` runs on x (N, …)."""
    quantizers = {name: quantizer for name, layer in layers.items() if (quantizer := quantizer_of(layer)) is not None}
    if quantizers:
        seen = input_histograms(module, {name: layers[name] for name in quantizers}, x)
        for name, quantizer in quantizers.items():
            quantizer.put(seen[name].grid(quantizer.bits))


def frozen_inputs(layers: Mapping[str, Layer]) -> dict[str, InputGrid]:
    """The grids of all input quantizers, by layer name."""
    found = {name: quantizer_of(layer) for name, layer in layers.items()}
    return {name: quantizer.freeze() for name, quantizer in found.items() if quantizer is not None}
