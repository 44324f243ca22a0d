"""Running a network unit by unit, with a look at what passes between units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recon.compute import batches, fast
from recon.network import Network, Unit

Keep = Callable[[str, Tensor], Tensor]


def run(network: Network, x: Tensor, keep: Keep) -> Tensor:
    """The network's output for x (N, C, H, W); every unit's output z is replaced by keep(unit name, z) on the way."""
    if network.chained:
        for unit in network.units:
            x = keep(unit.name, unit.module(x))
        return x
    hooks = [
        unit.module.register_forward_hook(lambda _m, _i, z, name=unit.name: keep(name, z)) for unit in network.units
    ]
    try:
        output: Tensor = network.model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return output


class _Reached(Exception):
    """The unit's input is known; the rest of the network need not run."""


@torch.no_grad()
def unit_inputs(network: Network, unit: Unit, images: Tensor) -> Tensor:
    """What `unit` receives (N, …) when the network runs on images (N, C, H, W), in fast arithmetic.

    For a network that is a chain of units it is cheaper to carry the outputs of one unit to the next.
    """
    caught: list[Tensor] = []

    def catch(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        caught.append(args[0].to(images.device))
        raise _Reached

    hook = unit.module.register_forward_pre_hook(catch)
    try:
        with fast():
            for x in batches(images):
                try:
                    network.model(x)
                except _Reached:
                    continue
    finally:
        hook.remove()
    return torch.cat(caught)
