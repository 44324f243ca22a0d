"""Operations that apply a weight made of parameters become calls of `Layer` modules under the parameters' names."""

from __future__ import annotations

import operator
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, fx, nn

from recon.graph.layers import Convolution, Embedding, Layer, Linear, TransposedConvolution
from recon.graph.nodes import ELSEWHERE, STACK, aten, constant_nodes, packet_of, value_of

_CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d)
_TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
_COMPUTED = re.compile(r"(\.parametrizations)?\.weight(\.original\d*|_g|_v|_orig|_mask|_u)?$")


def layers_as_modules(module: fx.GraphModule, shared: Mapping[str, Sequence[str]]) -> None:
    """Every operation that applies a weight made of parameters calls a `Layer` under the weight's name. `shared` are
    the paths of parameters that have several, by each of them."""
    constants = constant_nodes(module.graph)
    taken: set[str] = set()
    made: dict[tuple[Any, ...], str] = {}
    layers: dict[str, Layer] = {}
    for node in list(module.graph.nodes):
        weight = _weight_of(node)
        if weight is None or weight not in constants:
            continue
        bias = node.args[2] if len(node.args) > 2 and packet_of(node) is not aten.embedding else None
        if isinstance(bias, fx.Node) and bias not in constants:
            continue
        settings = tuple(arg for arg in node.args[2:] if not isinstance(arg, fx.Node))
        key = (weight, bias, packet_of(node), str(settings))
        if key not in made:
            layer = _layer(module, node, weight, bias)
            layer.source = _source(weight)
            made[key] = _free_name(layer.source, shared.get(layer.source, ()), node, taken)
            layers[made[key]] = layer
        source = node.args[1] if packet_of(node) is aten.embedding else node.args[0]
        node.op, node.target, node.args, node.kwargs = "call_module", made[key], (source,), {}
    for node in reversed(list(module.graph.nodes)):
        if node in constants and not node.users:
            module.graph.erase_node(node)
    _set_apart(module, layers)
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, layer in layers.items():  # now that no layer reads the parameters any more
        _add(module, name, layer, read)


def _free_name(source: str, paths: Sequence[str], node: fx.Node, taken: set[str]) -> str:
    """The name of a layer: that of its weight, of a shared one's `paths` that in the module that calls it; where
    another layer has it, that of the calling module, or a number."""
    name = _COMPUTED.sub("", source)
    inner = next(reversed(node.meta[STACK]), name)
    own = [inner] if inner in {_COMPUTED.sub("", path) for path in paths} else []
    names = chain((*own, name, inner), (f"{name}.{k}" for k in count(1)))
    name = next(found for found in names if found not in taken)
    taken.add(name)
    return name


def _set_apart(module: fx.GraphModule, layers: Iterable[str]) -> None:
    """Parameters of layers that other operations read too stay as they are, whatever becomes of the layer's weight."""
    taken = {path for name in layers for path in (name, f"{name}.weight", f"{name}.bias")}
    for node in module.graph.nodes:
        target = str(node.target)
        if node.op != "get_attr" or target not in taken:
            continue
        *parents, leaf = target.split(".")
        holder: nn.Module = module
        for part in (ELSEWHERE, *parents):
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        if leaf not in holder._parameters:
            value = operator.attrgetter(target)(module)
            holder.register_parameter(leaf, nn.Parameter(value.detach().clone(), requires_grad=False))
        node.target = f"{ELSEWHERE}.{target}"


def _add(module: fx.GraphModule, name: str, layer: Layer, read: Container[str]) -> None:
    """Puts a layer where a module of the model has been, whose children and tensors it keeps as far as they are
    `read`."""
    parent, _, leaf = name.rpartition(".")
    holder: nn.Module = module
    for part in parent.split(".") if parent else ():
        if part not in holder._modules:
            if part in holder._parameters or part in holder._buffers:
                del (holder._parameters if part in holder._parameters else holder._buffers)[part]
            holder.add_module(part, nn.Module())
        holder = holder._modules[part]  # type: ignore[assignment]
    old = holder._modules.pop(leaf, None)
    holder._parameters.pop(leaf, None)
    holder._buffers.pop(leaf, None)  # a tensor that the code holds without registering it
    if old is not None:
        for key, child in old._modules.items():
            layer.add_module(key, child)
        for key, value in old.named_buffers(recurse=False):
            if f"{name}.{key}" in read:
                layer.register_buffer(key, value, persistent=key not in old._non_persistent_buffers_set)
        for key, parameter in old.named_parameters(recurse=False):
            if f"{name}.{key}" in read:
                layer.register_parameter(key, parameter)
    holder.add_module(leaf, layer)


def _weight_of(node: fx.Node) -> fx.Node | None:
    """The weight of a convolution, linear map or embedding; None of anything else."""
    packet = packet_of(node)
    if packet in (*_CONVOLUTIONS, *_TRANSPOSED, aten.linear):
        weight = node.args[1]
    elif packet is aten.embedding:
        weight = node.args[0]
    else:
        return None
    return weight if isinstance(weight, fx.Node) else None


def _layer(module: fx.GraphModule, node: fx.Node, weight: fx.Node, bias: Any) -> Layer:
    packet = packet_of(node)
    w = value_of(module, weight).float()
    b = value_of(module, bias).float() if isinstance(bias, fx.Node) else None
    if packet is aten.embedding:
        return Embedding(w)
    if packet is aten.linear:
        return Linear(w, _bias(b, len(w)))
    args: dict[str, Any] = dict(zip(_argument_names(node), node.args, strict=False)) | dict(node.kwargs)
    rank = w.dim() - 2

    def each(key: str, default: int) -> tuple[int, ...]:
        values = args.get(key, default)
        values = [values] if isinstance(values, int) else list(values)
        return tuple(values * rank if len(values) == 1 else values)

    stride, dilation, groups = each("stride", 1), each("dilation", 1), int(args.get("groups", 1))
    if packet in _TRANSPOSED:
        return TransposedConvolution(
            w,
            _bias(b, w.shape[1] * groups),
            stride,
            each("padding", 0),
            each("output_padding", 0),
            dilation,
            groups,
        )
    padding = args.get("padding", 0)
    padding = padding if isinstance(padding, str) else each("padding", 0)
    return Convolution(w, _bias(b, len(w)), stride, padding, dilation, groups)


def _bias(bias: Tensor | None, channels: int) -> Tensor:
    """The bias, zero where there is none, so that what quantization does to a layer's mean can be corrected."""
    return torch.zeros(channels) if bias is None else bias


def _argument_names(node: fx.Node) -> list[str]:
    return [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]


def _source(weight: fx.Node) -> str:
    """The path of the parameter that a weight is, or is computed from."""
    todo, found = [weight], []
    while todo:
        node = todo.pop()
        if node.op == "get_attr":
            found.append(str(node.target))
        todo += node.all_input_nodes
    return max(found, key=lambda path: ("weight" in path, path))
