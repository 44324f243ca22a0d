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

from recon.graph.layers import Layer
from recon.graph.patterns import calls_one_of, only_call
from recon.quantizers.inputs import InputQuantizer
from recon.quantizers.insert import quantizer_of


class _InCodes(nn.Module):
    """A layer that reads what is counted in steps of the quantizer `read`, and writes what is in those of `written`."""

    def __init__(self, layer: Layer, read: InputQuantizer | None, written: InputQuantizer | None) -> None:
        super().__init__()
        self.layer, self.read, self.written = layer, read, written

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.layer.weight
        bias: Tensor = self.layer.bias
        if self.read is not None:
            x, weight = self.read.codes(x), weight * self.read.log_scale.exp()
        if self.written is not None:
            steps = (-self.written.log_scale).exp()
            weight, bias = weight * steps, bias * steps
        return self.layer.apply_weight(x, weight, bias)


def in_integer_domain(module: fx.GraphModule, layers: Mapping[str, Layer]) -> fx.GraphModule:
    """A module that computes what `module` does, whose `layers` may have input quantizers, and learns what it learns;
    `module` itself where there are none, or where activations are left unrounded."""
    quantizers = {name: found for name, layer in layers.items() if (found := quantizer_of(layer)) is not None}
    if not quantizers or any(quantizer.dropped for quantizer in quantizers.values()):
        return module
    result = fx.GraphModule(module, copy.deepcopy(module.graph))
    calls = {name: node for name in layers if (node := only_call(result, name)) is not None}
    writers = {name: writer for name in quantizers if (writer := _writer(calls, quantizers[name], name)) is not None}
    written = {writer: quantizers[name] for name, writer in writers.items()}
    for name in [name for name in calls if name in writers or name in written]:
        call = calls[name]
        call.target = target = f"in_codes_{name.replace('.', '_')}"
        if name in writers:
            (rounded,) = call.all_input_nodes
            call.replace_input_with(rounded, rounded.all_input_nodes[0])
            result.graph.erase_node(rounded)
        read = quantizers[name] if name in writers else None
        result.add_submodule(target, _InCodes(layers[name], read, written.get(name)))
    result.recompile()
    return result


def _writer(calls: Mapping[str, fx.Node], quantizer: InputQuantizer, name: str) -> str | None:
    """The layer that writes all that layer `name`, with a quantizer for a ReLU, reads, and nothing else."""
    if name not in calls or quantizer.cap is None:
        return None
    (rounded,) = calls[name].all_input_nodes
    (source,) = rounded.all_input_nodes
    return str(source.target) if calls_one_of(source, calls) and len(source.users) == 1 else None
