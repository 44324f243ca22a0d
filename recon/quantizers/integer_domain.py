"""A unit as it is trained: every tensor rounded once, and counted in steps of its quantizer where that saves work.

Where nothing but a ReLU, which a quantizer stands for, lies between two layers, the weight and the bias of the first
are divided by the step size s and the weight of the second is multiplied by it: what passes between them are codes.
Rounding them takes two passes over memory in place of four, and the gradient of s comes with those of the weights, from
all values: of ∂x̂/∂s (LSQ, eq. 3) the second weight brings round(z / s), the first one −z / s inside the range.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, fx, nn

from recon.graph.layers import Layer, apply_weight
from recon.graph.patterns import calls_one_of, only_call
from recon.quantizers.inputs import InputQuantizer
from recon.quantizers.insert import QUANTIZER, quantizer_of


class _InCodes(nn.Module):
    """A layer that reads what is counted in steps of the quantizer `read`, and writes what is in those of `written`."""

    def __init__(self, layer: Layer, read: InputQuantizer | None, written: InputQuantizer | None) -> None:
        super().__init__()
        self.layer, self.read, self.written = layer, read, written

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        assert bias is not None
        if self.read is not None:
            x, weight = self.read.codes(x), weight * self.read.log_scale.exp()
        if self.written is not None:
            steps = (-self.written.log_scale).exp()
            weight, bias = weight * steps, bias * steps
        return apply_weight(self.layer, x, weight, bias)


def in_code_units(module: nn.Module, layers: Mapping[str, Layer]) -> nn.Module:
    """A module that computes what `module` does, whose `layers` may have input quantizers, and learns what it learns;
    `module` itself where it is not traced, or where activations are left unrounded."""
    quantizers = {name: found for name, layer in layers.items() if (found := quantizer_of(layer)) is not None}
    whole = quantizers and not any(quantizer.dropped for quantizer in quantizers.values())
    if not whole or not isinstance(module, fx.GraphModule):
        return module
    result = fx.GraphModule(module, copy.deepcopy(module.graph))
    calls = {name: node for name in layers if (node := only_call(result, name)) is not None}
    writers = {name: writer for name in quantizers if (writer := _writer(calls, quantizers[name], name)) is not None}
    written = {writer: quantizers[name] for name, writer in writers.items()}
    for name in [name for name in calls if name in quantizers or name in written]:
        if name in quantizers and name not in writers:
            _share(calls[name], name)
        calls[name].target = target = f"in_codes_{name.replace('.', '_')}"
        read = quantizers[name] if name in writers else None
        result.add_submodule(target, _InCodes(layers[name], read, written.get(name)))
    result.recompile()
    return result


def _writer(calls: Mapping[str, fx.Node], quantizer: InputQuantizer, name: str) -> str | None:
    """The layer that writes all that layer `name`, with a quantizer for a ReLU, reads, and nothing else."""
    if name not in calls or quantizer.cap is None:
        return None
    (source,) = calls[name].all_input_nodes
    return str(source.target) if calls_one_of(source, calls) and len(source.users) == 1 else None


def _share(node: fx.Node, name: str) -> None:
    """Layer `name`, called by `node`, gets what its quantizer makes for others, or would make for it."""
    (source,) = node.all_input_nodes
    quantizer = f"{name}.{QUANTIZER}"
    rounded = next((user for user in source.users if user.target == quantizer), None)
    if rounded is None:
        with node.graph.inserting_before(node):
            rounded = node.graph.call_module(quantizer, (source,))
    node.replace_input_with(source, rounded)
