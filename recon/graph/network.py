"""A network as quantization sees it: the folded model, its layer table and its reconstruction units."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from hwmodel.errors import InputError
from hwmodel.layer import LayerSpec, LayerTable
from recon.compute.arithmetic import device_of
from recon.graph.fold import fold_batch_norms
from recon.graph.layers import Call, Calls, Layer, is_layer, record_calls
from recon.graph.partition import Unit, join, partition
from recon.graph.patterns import trace_graph

__all__ = ["Network", "Unit", "trace"]


@dataclass(frozen=True, slots=True)
class Network:
    """A float model in eval mode, batch norms folded, no gradients; `units` share their layer modules with `model`.

    Every layer has a bias. Where `chained`, applying the units' modules one after another to the input is the model.
    Otherwise (torch.fx could not trace the model) each layer is its own unit.
    """

    model: nn.Module
    table: LayerTable
    units: tuple[Unit, ...]
    chained: bool

    @property
    def device(self) -> torch.device:
        """Where it computes: where its model is."""
        return device_of(self.model)

    def layer(self, name: str) -> nn.Conv2d | nn.Linear:
        """The layer's module. Raises InputError where the table has no such layer."""
        if name not in self.table.names:
            raise InputError(f"no layer {name!r} in {self.table.model}: expected one of its {len(self.table)} layers")
        module = self.model.get_submodule(name)
        assert isinstance(module, Layer)
        return module

    def joined(self) -> nn.Module:
        """One traced module that applies the units one after another; the model itself where it is no chain."""
        return join(self.model, self.units) if self.chained else self.model

    def lone_layers(self) -> tuple[LayerSpec, ...]:
        """The layers that are called once and have a weight of their own; none are known of a network that is no
        chain."""
        graphs = [unit.module.graph for unit in self.units if isinstance(unit.module, fx.GraphModule)]
        calls = Counter(str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_module")
        ties = Counter(spec.tie for spec in self.table)
        return tuple(spec for spec in self.table if calls[spec.name] == ties[spec.tie] == 1) if self.chained else ()

    def copy(self) -> Network:
        """A deep copy; its units share their modules with its model, and nothing with this network."""
        model, modules = copy.deepcopy((self.model, [unit.module for unit in self.units]))
        units = tuple(Unit(unit.name, unit.layers, module) for unit, module in zip(self.units, modules, strict=True))
        return Network(model, self.table, units, self.chained)


def trace(model: nn.Module, input_size: tuple[int, int, int], name: str = "model") -> Network:
    """Turns any convolutional model into a Network; `model` itself stays as it is.

    `input_size` is (channels, height, width) of one image. The network lives on the device of the model. A layer called
    on maps of several sizes is described as one use on a map of all their positions × 1 pixels. Raises InputError where
    the model does not run on such an image or has no layer that can be quantized.
    """
    model = _float_copy(model)
    images = _images(model, input_size)
    try:
        calls = record_calls(model, images[:1])
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{name} does not run on an image of size {input_size}: {reason}") from error
    if not calls.layers:
        raise InputError(f"{name} calls no convolution (Conv2d) or linear layer, so there is nothing to quantize")
    unfolded = fold_batch_norms(model, calls)
    layers = tuple(calls.layers)
    _give_biases(model, layers)
    units = _chain(model, images, layers)
    chained = units is not None
    if units is None:
        units = tuple(Unit(layer, (layer,), model.get_submodule(layer)) for layer in layers)
    table = LayerTable(name, input_size, _specs(model, calls, units), _uncounted(model, calls, unfolded))
    return Network(model, table, units, chained)


def _float_copy(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model).eval().float()
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            _make_plain(module)
    model.requires_grad_(False)
    return nn.Sequential(model) if is_layer(model) else model


def _make_plain(module: nn.Module) -> None:
    """Replaces computed parameters (weight_norm, for example) by their values.

    `remove_parametrizations` would also change the class, which the copy shares with the original.
    """
    assert isinstance(module.parametrizations, nn.ModuleDict)
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def _images(model: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    """Three images of noise, where the model is."""
    return torch.randn(3, *input_size, generator=torch.Generator().manual_seed(0)).to(device_of(model))


def _give_biases(model: nn.Module, layers: tuple[str, ...]) -> None:
    """A zero bias for every layer without one, so that what quantization does to a layer's mean can be corrected."""
    for name in layers:
        layer = model.get_submodule(name)
        if layer.bias is None:
            assert isinstance(layer.weight, Tensor)
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)), requires_grad=False)


def _chain(model: nn.Module, images: Tensor, layers: tuple[str, ...]) -> tuple[Unit, ...] | None:
    """Units that are the model when chained; None where the traced graph does not compute what the model computes."""
    graph = trace_graph(model)
    if graph is None:
        return None
    with torch.no_grad():
        expected = model(images)
        try:
            units = partition(model, graph, images, layers)
            result = images
            for unit in units or ():
                result = unit.module(result)
        except (RuntimeError, TypeError, IndexError):  # the graph holds for the traced batch size only, for example
            return None
    if not units or not isinstance(expected, Tensor) or result.shape != expected.shape:
        return None
    if {layer for unit in units for layer in unit.layers} != set(layers):
        return None
    tolerance = 1e-4 * float(expected.abs().max().nan_to_num())
    return units if torch.allclose(result, expected, rtol=0, atol=tolerance, equal_nan=True) else None


def _specs(model: nn.Module, calls: Calls, units: tuple[Unit, ...]) -> tuple[LayerSpec, ...]:
    blocks = {layer: unit.name for unit in units for layer in unit.layers}
    ties: dict[int, str] = {}
    specs = []
    for name, layer_calls in calls.layers.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Layer)
        tie = ties.setdefault(id(layer.weight), name)
        specs.append(_spec(name, layer, layer_calls, blocks[name], tie))
    return tuple(specs)


def _spec(name: str, layer: Layer, calls: list[Call], block: str, tie: str) -> LayerSpec:
    sizes = [(_map_size(layer, call.in_shape), _map_size(layer, call.out_shape)) for call in calls]
    uses = len(sizes)
    if len(set(sizes)) > 1:
        uses = 1
        sizes = [((sum(math.prod(i) for i, _ in sizes), 1), (sum(math.prod(o) for _, o in sizes), 1))]
    (in_size, out_size) = sizes[0]
    if isinstance(layer, nn.Linear):
        one = (1, 1)
        return LayerSpec(
            name, "linear", layer.in_features, layer.out_features, one, one, one, 1, in_size, out_size, block, tie, uses
        )
    return LayerSpec(
        name,
        "conv",
        layer.in_channels,
        layer.out_channels,
        (layer.kernel_size[0], layer.kernel_size[1]),
        (layer.stride[0], layer.stride[1]),
        (layer.dilation[0], layer.dilation[1]),
        layer.groups,
        in_size,
        out_size,
        block,
        tie,
        uses,
    )


def _map_size(layer: Layer, shape: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of a feature map; (positions, 1) of a linear layer's input or output. For a batch of one."""
    if isinstance(layer, nn.Linear):
        return math.prod(shape[:-1]), 1
    return shape[-2], shape[-1]


def _uncounted(model: nn.Module, calls: Calls, unfolded: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Every other holder of parameters or float buffers, with the reason why it is not quantized."""
    parts: list[tuple[str, str]] = []
    for name, module in model.named_modules():
        held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        tensors = [key for key, tensor in held if tensor.is_floating_point()]
        if name in calls.layers or not tensors:
            continue
        kind = type(module).__name__
        if name in unfolded:
            parts.append((name, unfolded[name]))
        elif any(calls.parameter_reads[f"{name}.{key}"] for key in tensors) and not calls.counts[name]:
            parts.append((name, f"{kind} is not called: its parameters are used directly"))
        elif not calls.counts[name]:
            parts.append((name, "never called"))
        elif type(module).__module__.startswith("torch.nn."):
            parts.append((name, f"{kind} is not quantized"))
        else:
            parts += [(f"{name}.{key}".lstrip("."), f"parameter of {kind}, used directly") for key in tensors]
    return tuple(parts)
