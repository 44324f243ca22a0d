"""A network as quantization sees it: one graph with its batch norms folded, its layer table and its units."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hwmodel.errors import InputError
from hwmodel.layer import LayerSpec, LayerTable
from recon.compute.arithmetic import device_of, single_precision
from recon.graph.capture import Captured, export_graph, plain_copy
from recon.graph.fold import fold_batch_norms
from recon.graph.layers import Convolution, Layer, TransposedConvolution
from recon.graph.overwriting import overwriting
from recon.graph.partition import partition
from recon.graph.patterns import relu_cap
from recon.graph.products import products
from recon.graph.refusal import first_line
from recon.graph.samples import Samples, single
from recon.graph.uncounted import uncounted
from recon.graph.units import UNIT, Unit, is_layer, units_of

__all__ = ["Network", "Unit", "capture"]


@dataclass(frozen=True)
class Network:
    """A captured network in eval mode, batch norms folded, without gradients.

    `module` maps the tensors of a call, in pytree order, to a tuple of the tensors of the result; its nodes are
    labelled with their units. `inputs` and `outputs` are the structures around these tensors, `dtypes` the types of the
    input tensors, `names` the paths of the output tensors ("" for a single one). Applying the `units` one after another
    is the network.
    """

    module: fx.GraphModule
    table: LayerTable
    inputs: TreeSpec
    dtypes: tuple[torch.dtype, ...]
    outputs: TreeSpec
    names: tuple[str, ...]

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """Parts of the module, each with a graph of its own, made when they are first asked for."""
        return units_of(self.module)

    @property
    def device(self) -> torch.device:
        """Where it computes: where its layers are."""
        return device_of(self.module)

    @property
    def model(self) -> nn.Module:
        """The network as it is called: with the arguments and the result of the model that was captured."""
        return CapturedModel(self.module, self.inputs, self.outputs)

    def layer(self, name: str) -> Layer:
        """The layer's module. Raises InputError where the table has no such layer."""
        if name not in self.table.names:
            raise InputError(f"no layer {name!r} in {self.table.model}: expected one of its {len(self.table)} layers")
        module = self.module.get_submodule(name)
        assert isinstance(module, Layer)
        return module

    def outputs_of(self, *leaves: Tensor) -> dict[str, Tensor]:
        """The output tensors by path for the tensors of a call."""
        return dict(zip(self.names, self.module(*leaves), strict=True))

    def leaves(self, samples: Samples) -> tuple[Tensor, ...]:
        """The tensors of samples, in single precision. Raises InputError where they do not fit the network."""
        if samples.spec != self.inputs:
            raise InputError(f"{self.table.model} takes {self.inputs}; got {samples.spec}")
        return samples.single().leaves

    def lone_layers(self) -> tuple[LayerSpec, ...]:
        """The layers that are called once and have a weight of their own."""
        calls = Counter(str(node.target) for node in self.module.graph.nodes if is_layer(self.module, node))
        ties = Counter(spec.tie for spec in self.table)
        return tuple(spec for spec in self.table if calls[spec.name] == ties[spec.tie] == 1)

    def sample_axes(self) -> dict[str, int | None]:
        """By layer, the axis of its outputs that grows with the number of samples: None where it reads constants."""
        shapes = {
            str(node.target): node.meta["shape"] for node in self.module.graph.nodes if is_layer(self.module, node)
        }
        return {
            name: next((axis for axis, size in enumerate(shape) if size < 0), None) for name, shape in shapes.items()
        }

    def with_one_step(self) -> Network:
        """The same network, the inputs of whose layers have one step for all channels."""
        result = self.copy()
        for spec in self.table:
            result.layer(spec.name).channel_steps = False
        layers = tuple(replace(spec, channel_steps=False) for spec in self.table)
        return replace(result, table=replace(self.table, layers=layers))

    def copy(self) -> Network:
        """A deep copy that shares nothing with this network."""
        return self.rebuilt(copy.deepcopy(self.module))

    def rebuilt(self, module: fx.GraphModule) -> Network:
        """The same network with another module, whose nodes are labelled."""
        module.recompile()
        return replace(self, module=module)


class CapturedModel(nn.Module):
    """A captured module that takes and returns what the model did that it was captured from, real numbers in single
    precision."""

    def __init__(self, module: fx.GraphModule, inputs: TreeSpec, outputs: TreeSpec) -> None:
        super().__init__()
        self.module, self.inputs, self.outputs = module, inputs, outputs

    def overwriting(self) -> CapturedModel:
        """The same for inference: `recon.graph.overwriting`."""
        return CapturedModel(overwriting(self.module), self.inputs, self.outputs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, dict(sorted(kwargs.items()))))
        if spec != self.inputs:
            raise InputError(f"expected arguments like {self.inputs}, got {spec}")
        return tree_unflatten(list(self.module(*map(single, leaves))), self.outputs)


def capture(model: nn.Module, example: Any, name: str = "model") -> Network:
    """Turns a model into a Network; `model` itself stays as it is.

    `example` is a batch as the model takes it: a tensor, a tuple of positional arguments, a dict of keyword arguments,
    or Samples; two samples or more. The network lives on the device of the model. A layer called on maps of several
    sizes is described as one use on a map of all their positions × 1 pixels. Raises InputError where the model cannot
    be exported or has no layer that can be quantized.
    """
    samples = Samples.of(example).to(device_of(model)).single()
    if len(samples) < 2:
        samples = Samples(tuple(torch.cat([leaf, leaf]) for leaf in samples.leaves), samples.spec)
    captured = export_graph(model, samples[:3], name)
    unfolded = fold_batch_norms(captured.module)
    module = fx.GraphModule(captured.module, captured.module.graph, class_name="Captured")  # without what was folded
    if not any(is_layer(module, node) for node in module.graph.nodes):
        raise InputError(f"{name} applies no convolution, linear map or embedding, so there is nothing to quantize")
    partition(module, captured.kinds)
    avoid_slow_kernels(module)
    mark_channel_steps(module)
    module.recompile()
    network = _described(replace(captured, module=module), samples, unfolded, name)
    with contextlib.redirect_stdout(sys.stderr), single_precision():  # the user's code runs
        _check(network, model, samples[:2], name)
    return network


def _described(captured: Captured, samples: Samples, unfolded: Mapping[str, str], name: str) -> Network:
    module = captured.module
    blocks = {str(node.target): node.meta[UNIT] for node in module.graph.nodes if is_layer(module, node)}
    ties: dict[str, str] = {}
    specs = []
    for layer_name, sizes in _call_sizes(module).items():
        layer = module.get_submodule(layer_name)
        assert isinstance(layer, Layer)
        tie = ties.setdefault(layer.source, layer_name)
        specs.append(_spec(layer_name, layer, sizes, blocks[layer_name], tie))
    shapes = tuple(tuple(leaf.shape[1:]) for leaf in samples.leaves)
    table = LayerTable(name, shapes, tuple(specs), uncounted(captured, unfolded), tuple(products(module)))
    dtypes = tuple(leaf.dtype for leaf in samples.leaves)
    return Network(module, table, captured.inputs, dtypes, captured.outputs, captured.names)


def _call_sizes(module: fx.GraphModule) -> dict[str, list[tuple[Size, Size]]]:
    """The sizes of the input and output maps of every call of a layer, by layer in order of execution."""
    found: dict[str, list[tuple[Size, Size]]] = {}
    for node in module.graph.nodes:
        if is_layer(module, node):
            layer = module.get_submodule(str(node.target))
            (source,) = node.all_input_nodes
            maps = isinstance(layer, Convolution | TransposedConvolution)
            sizes = _map_size(source, maps), _map_size(node, maps, layer.kind == "embedding")
            found.setdefault(str(node.target), []).append(sizes)
    return found


Size = tuple[int, int]


def _map_size(node: fx.Node, maps: bool, vectors: bool = False) -> Size:
    """(height, width) of a feature map; (positions, 1) of a linear layer's input or output, or of ids."""
    shape = [abs(size) for size in node.meta["shape"]]  # samples count as one
    if maps:
        return _flat(shape[2:])
    ids = not vectors and not node.meta["floating"]
    return math.prod(shape if ids else shape[:-1]), 1


def _flat(sizes: list[int] | tuple[int, ...]) -> Size:
    """One, two or three dimensions as two."""
    return (sizes[0], 1) if len(sizes) == 1 else (math.prod(sizes[:-1]), sizes[-1])


def _spec(name: str, layer: Layer, sizes: list[tuple[Size, Size]], block: str, tie: str) -> LayerSpec:
    uses = len(sizes)
    if len(set(sizes)) > 1:
        uses = 1
        sizes = [((sum(math.prod(i) for i, _ in sizes), 1), (sum(math.prod(o) for _, o in sizes), 1))]
    (in_size, out_size), one = sizes[0], (1, 1)
    channels = layer.weight.shape[1] * layer.groups, len(layer.weight)
    more = uses, layer.channel_steps
    if isinstance(layer, Convolution | TransposedConvolution):
        shape = _flat(layer.kernel), _flat(layer.stride), _flat(layer.dilation)
        return LayerSpec(name, layer.kind, *channels, *shape, layer.groups, in_size, out_size, block, tie, *more)
    return LayerSpec(name, layer.kind, *channels, one, one, one, 1, in_size, out_size, block, tie, *more)


def mark_channel_steps(module: fx.GraphModule) -> None:
    """Depthwise convolutions whose quantized inputs get a step for every channel: those that are called once and read
    what no ReLU has cut off. (Behind one, `equalized` does it where it pays.)"""
    calls = [node for node in module.graph.nodes if is_layer(module, node)]
    often = Counter(str(node.target) for node in calls)
    for node in calls:
        layer = module.get_submodule(str(node.target))
        assert isinstance(layer, Layer)
        (source,) = node.all_input_nodes
        depthwise = isinstance(layer, Convolution) and layer.weight.shape[1] == 1 < layer.groups
        if depthwise and often[str(node.target)] == 1 and relu_cap(source) is None:
            layer.channel_steps = True


def avoid_slow_kernels(module: fx.GraphModule) -> None:
    """Keeps convolutions whose bfloat16 gradient is slower than float32 on CPUs in float32.

    Measured with oneDNN: three input channels 3.4 times, depthwise with a stride 2.7 times as slow.
    """
    on_cpu = device_of(module).type == "cpu"
    for layer in module.modules():
        if isinstance(layer, Convolution) and len(layer.kernel) == 2:
            few = layer.weight.shape[1] * layer.groups < 8
            strided = layer.groups > 1 and max(layer.stride) > 1
            layer.exact = on_cpu and (few or strided)


def _is_random(model: nn.Module, samples: Samples) -> bool:
    """The same samples give different outputs."""
    results = []
    for _ in range(2):
        args, kwargs = Samples(tuple(leaf.clone() for leaf in samples.leaves), samples.spec).call
        with torch.no_grad(), contextlib.suppress(Exception):
            results.append([leaf.clone() for leaf in tree_flatten(model(*args, **kwargs))[0]])
    return len(results) == 2 and any(not torch.equal(a, b) for a, b in zip(*results, strict=True))


def _check(network: Network, model: nn.Module, samples: Samples, name: str) -> None:
    """Raises InputError where the network does not compute what the model computes, for one sample too."""
    plain = plain_copy(model)
    if _is_random(plain, samples):
        return
    for part in (samples, samples[:1]):
        args, kwargs = Samples(tuple(leaf.clone() for leaf in part.leaves), part.spec).call
        with torch.no_grad():
            try:
                expected = tree_flatten(plain(*args, **kwargs))[0]
                found = network.module(*part.leaves)
            except Exception as error:
                raise InputError(f"{name} does not run on {len(part)} samples: {first_line(error)}") from None
        for ours, theirs in zip(found, expected, strict=True):
            bound = 1e-3 * float(theirs.float().abs().nan_to_num().max()) + 1e-6
            if ours.shape != theirs.shape or not torch.allclose(
                ours.float(), theirs.float(), rtol=0, atol=bound, equal_nan=True
            ):
                raise InputError(
                    f"the exported graph of {name} does not compute what the model computes on {len(part)} samples; "
                    "does it depend on the number of samples, or draw random numbers?"
                )
