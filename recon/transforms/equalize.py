"""Depthwise convolutions whose input channels are all as wide, so that one range for the tensor suits each of them.

A positive factor passes ReLU: the layer before it may be scaled by channels, and a depthwise convolution undoes that.
Both have a grid for every output channel, so that rounding the weights costs what it did. It is the cross-layer
equalization of Nagel et al., "Data-Free Quantization", ICCV 2019 (arXiv 1906.04721), here for the inputs alone: each
channel gets the width that leaves it the least error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from recon.compute.arithmetic import channels_last, fast, mixed_order, picked
from recon.graph.layers import Layer, watched
from recon.graph.network import Network
from recon.graph.patterns import calls_one_of, relu_cap
from recon.graph.units import UNIT
from recon.quantizers.learned import bias_of
from recon.statistics.moments import PER_IMAGE, some_positions

ENOUGH = 8  # bits of inputs: there and above, equalization gains nothing
NARROWEST = 1 / 32  # of the widest channel: what is next to nothing is not blown up
IMAGES, BATCH = 128, 32
BINS, SHRINK_STEPS = 2048, 33
LEAST = 1e-12


class CappedReLU(nn.ReLU):
    """ReLU, cut off where each channel's `cap` (C,) is: of maps (N, C, H, W), or of outputs by group (G, C / G, M)."""

    def __init__(self, cap: Tensor) -> None:
        super().__init__()
        self.register_buffer("cap", cap)
        self.cap: Tensor

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, 1, 1) if x.dim() == 4 else (*x.shape[:2], 1)
        return torch.minimum(super().forward(x), self.cap.to(x.dtype).view(shape))


@dataclass(frozen=True, slots=True)
class _Pair:
    """A layer and the depthwise convolution that reads its output through ReLU, cut off at `cap`."""

    writer: str
    relu: fx.Node
    cap: float
    reader: str


@torch.no_grad()
def equalized(network: Network, bits: Mapping[str, int], leaves: Sequence[Tensor]) -> tuple[Network, Network]:
    """Two networks with equalized inputs of the depthwise convolutions that have fewer than 8 `bits`; twice `network`
    itself where there are none. Samples, whose tensors are (N, …), tell how wide the channels are.

    The first one has the activation functions of the given network, so that its layers fit there: they cut off what the
    ranges cut off. The other one computes what the given network does.
    """
    pairs = [pair for pair in _pairs(network) if bits.get(pair.reader, ENOUGH) < ENOUGH]
    if not pairs:
        return network, network
    result = network.copy()
    factors: dict[str, Tensor] = {}
    tops = _tops(network, {pair.reader: bits[pair.reader] for pair in pairs}, leaves)
    for pair, top in zip(pairs, tops, strict=True):
        factor = top.max() / top
        writer, reader = result.layer(pair.writer), result.layer(pair.reader)
        _scale(writer, factor)
        bias_of(writer).data = bias_of(writer) * factor
        _scale(reader, 1 / factor.repeat_interleave(len(reader.weight) // len(factor)))
        factors[pair.reader] = factor
    exact = result.copy()
    for index, pair in enumerate(_pairs(exact)):
        if pair.reader in factors and pair.cap < math.inf:
            _put(CappedReLU(pair.cap * factors[pair.reader]), f"capped_relu_{index}", pair, exact)
    return result, exact.rebuilt(exact.module)


def _pairs(network: Network) -> list[_Pair]:
    """The pairs of lone layers within the blocks of a network, in order."""
    lone = {spec.name: spec for spec in network.lone_layers()}
    pairs = []
    for reader in network.module.graph.nodes:
        if not calls_one_of(reader, lone) or not lone[reader.target].depthwise:
            continue
        (relu,) = reader.all_input_nodes
        writer, cap = next(iter(relu.all_input_nodes), relu), relu_cap(relu)
        within = writer.meta.get(UNIT) == relu.meta.get(UNIT) == reader.meta.get(UNIT)
        if cap and within and calls_one_of(writer, lone) and len(relu.users) == len(writer.users) == 1:
            pairs.append(_Pair(str(writer.target), relu, cap, str(reader.target)))
    return pairs


def _tops(network: Network, bits: Mapping[str, int], leaves: Sequence[Tensor]) -> Iterator[Tensor]:
    """For the layers of `bits`, the ends of the ranges (C,) that leave every channel of their inputs, by itself, the
    least error."""
    seen: dict[str, list[Tensor]] = {name: [] for name in bits}
    generator = torch.Generator().manual_seed(0)

    def see(name: str, inputs: Tensor, _: Tensor) -> None:
        layer = network.layer(name)
        seen[name].append(layer.by_group(inputs, some_positions(layer, inputs, generator, PER_IMAGE)).flatten(0, 1))

    with watched({name: network.layer(name) for name in bits}, see), fast(network.device):
        for pick in torch.split(mixed_order(leaves[0])[:IMAGES], BATCH):
            network.module(*picked(leaves, pick, network.device))
    for name, width in bits.items():
        top = best_tops(torch.cat(seen.pop(name), 1), width)
        yield top.clamp_min(NARROWEST * float(top.max()))


def best_tops(x: Tensor, bits: int) -> Tensor:
    """The ends (C,) of ranges from zero with the least squared rounding error of channels x (C, M) that are never
    negative, by search over shrunken ranges."""
    top = x.amax(1, keepdim=True).float().clamp_min(LEAST)
    index = (x.float() * ((BINS - 1) / top)).round_().long() + BINS * torch.arange(len(x), device=x.device)[:, None]
    counts = torch.bincount(index.flatten(), minlength=BINS * len(x)).view(len(x), BINS).float()
    centres, levels = torch.linspace(0, 1, BINS, device=x.device), 2**bits - 1
    shrinks = torch.linspace(1.0, 0.2, SHRINK_STEPS, device=x.device)
    steps = shrinks[:, None] / levels
    errors = ((centres / steps).round().clamp_max(levels) * steps - centres).square()
    return shrinks[(counts @ errors.T).argmin(1)] * top[:, 0]


def _scale(layer: Layer, factor: Tensor) -> None:
    """Multiplies the output channels of a layer's weight by `factor` (O,)."""
    layer.weight.data = channels_last(layer.weight * factor.view(-1, *(1,) * (layer.weight.dim() - 1)))


def _put(module: nn.Module, name: str, pair: _Pair, network: Network) -> None:
    """`module`, as `name`, in the place of the ReLU between two layers of `network`."""
    network.module.add_module(name, module)
    with network.module.graph.inserting_after(pair.relu):
        capped = network.module.graph.call_module(name, pair.relu.args[:1])
    capped.meta = dict(pair.relu.meta)
    pair.relu.replace_all_uses_with(capped)
    network.module.graph.erase_node(pair.relu)
