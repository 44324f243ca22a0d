"""Running a network unit by unit, with a look at what passes between units."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from torch import Tensor, nn

from recon.compute.store import Store
from recon.graph.network import Network, Unit
from recon.quantizers.insert import activated_input

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


def unit_inputs(network: Network, unit: Unit, images: Tensor, store: Store) -> Tensor:
    """What `unit` receives (N, …) when the network runs on images (N, C, H, W), in fast arithmetic.

    For a network that is a chain of units it is cheaper to carry the outputs of one unit to the next.
    """
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        caught.append(activated_input(module, args[0]))
        raise _Reached

    def inputs(x: Tensor) -> Tensor:
        with contextlib.suppress(_Reached):
            network.model(x)
        return caught.pop()

    hook = unit.module.register_forward_pre_hook(catch, prepend=True)  # before the input is quantized
    try:
        return store.map(inputs, images)
    finally:
        hook.remove()
