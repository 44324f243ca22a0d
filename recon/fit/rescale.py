"""Logits as large as the float network's: their layers are rescaled when the network is finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from recon.compute.store import Store
from recon.graph.layers import Layer
from recon.graph.network import Network
from recon.graph.nodes import aten, packet_of
from recon.graph.unit_by_unit import Passing
from recon.graph.units import UNIT, Unit, is_layer
from recon.likelihood.cells import Cells
from recon.likelihood.heads import Head
from recon.likelihood.likelihood import Likelihood
from recon.quantizers.coded import to_log_grid
from recon.quantizers.learned import bias_of, rounding_of

STEP, MOST = 1.05, 14  # the factor goes up or down by as much, at most so often: to twice or half
_VIEWS = (aten.reshape, aten.squeeze, aten.unsqueeze, aten.permute, aten.transpose, aten.softmax, aten.log_softmax)


@torch.no_grad()
def rescale_logits(
    work: Network, network: Network, leaves: Sequence[Tensor], likelihood: Likelihood, store: Store
) -> dict[str, float]:
    """Scales the layers of `work` that give logits to where these diverge least from those of `network` on samples that
    taught no block, whose tensors are (N, …); gives the factors by layer.

    A block that gets noisy inputs and is fitted to outputs without noise learns to shrink, as any regression does
    (attenuation): MobileNetV2's logits are left about 1.2 times too small at 3 bits. A network that has learned its
    calibration samples by heart is too sure of others when it is rounded: there the factor is less than 1.
    """
    single = [head for head in likelihood.heads if not isinstance(head, Cells)]
    found = {head: layer for head in single if (layer := _logit_layer(work, head)) is not None}
    factors: dict[str, float] = {}
    if not found:
        return factors
    references = dict(zip(network.names, store.map(network.module, leaves), strict=True))
    passing = Passing(work, leaves)
    for unit in work.units:
        for head, (name, node) in found.items():
            if node.meta[UNIT] == unit.name:
                divergence = _divergence(head, references[head.part], unit, node.name, passing.read(unit), store)
                factors[name] = _fitted(work.layer(name), divergence)
        if len(factors) == len({name for name, _ in found.values()}):
            break
        passing.write(unit, store.map(unit.module, passing.read(unit)))
    return factors


def _logit_layer(network: Network, head: Head) -> tuple[str, fx.Node] | None:
    """The layer, called once, whose outputs are a head's logits, and the node of the head's output, in one unit with
    it; None where there is no such layer, or what it gives has a scale of its own."""
    (output,) = (node for node in network.module.graph.nodes if node.op == "output")
    result = output.args[0][network.names.index(head.part)]
    assert isinstance(result, fx.Node)
    node = result
    while packet_of(node) in _VIEWS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    alone = sum(other.target == node.target for other in network.module.graph.nodes) == 1
    fits = head.rescalable and is_layer(network.module, node) and alone
    return (str(node.target), result) if fits and node.meta[UNIT] == result.meta[UNIT] else None


def _divergence(
    head: Head, reference: Tensor, unit: Unit, value: str, inputs: Sequence[Tensor], store: Store
) -> Callable[[], float]:
    """The mean divergence of a head, whose output the unit writes as `value`, with the unit as it is when asked."""
    at = unit.writes.index(value)
    return lambda: float(head.divergence(reference, store.map(unit.module, inputs)[at]).mean())


def _fitted(layer: Layer, divergence: Callable[[], float]) -> float:
    """Scales a layer to where the divergence is least, and gives the factor."""
    scale, bias = rounding_of(layer).log_scale, bias_of(layer)
    scale_as_it_is, bias_as_it_is = scale.detach().clone(), bias.detach().clone()

    def put(factor: float) -> None:
        scale.data, bias.data = scale_as_it_is + math.log(factor), bias_as_it_is * factor

    def at(factor: float) -> float:
        put(factor)
        return divergence()

    best, found = 0, {0: at(1.0)}  # by steps up
    for step in (1, -1):  # the divergence is convex in the factor of the logits
        while abs(best + step) <= MOST:
            found[best + step] = at(STEP ** (best + step))
            if not found[best + step] < found[best]:
                break
            best += step
        if best:
            break
    factor: float = STEP ** (best + _vertex(*(found.get(best + step) for step in (-1, 0, 1))))
    if rounding_of(layer).grid.rate:  # the bias with the weights
        factor = float(to_log_grid(torch.tensor([factor])))
    put(factor)
    return factor


def _vertex(below: float | None, least: float | None, above: float | None) -> float:
    """Where a parabola through values at -1, 0 and 1 is least; 0 where one of them is unknown or none is larger."""
    if below is None or least is None or above is None or below + above <= 2 * least:
        return 0.0
    return (below - above) / (below - 2 * least + above) / 2
