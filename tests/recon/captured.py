"""Captured networks for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recon.compute.store import Store
from recon.fit.task import UnitTask
from recon.graph.network import Network, capture
from recon.graph.samples import Samples, named_parts
from recon.graph.unit_by_unit import Passing
from recon.statistics.moments import InputMoments, gather_moments


def of_images(model: nn.Module, size: tuple[int, ...], name: str = "model") -> Network:
    """A model of one tensor, whose samples have this size, captured on noise."""
    return capture(model, Samples.noise(size), name)


@torch.no_grad()
def unit_by_unit(network: Network, *leaves: Tensor) -> dict[str, Tensor]:
    """The outputs by path, computed by the units one after another, none of which may change what it reads."""
    passing = Passing(network, leaves)
    for unit in network.units:
        given = passing.read(unit)
        before = [x.clone() for x in given]
        values = unit.module(*given)
        assert all(map(torch.equal, given, before)), f"{unit.name} changes what it reads"
        assert [len(z) for z in values] == [len(leaves[0])] * len(unit.writes)
        assert [z.is_floating_point() for z in values] == list(unit.floating)
        passing.write(unit, values)
    return dict(zip(network.names, passing.outputs(), strict=True))


def moments_of(layer: nn.Module, x: Tensor) -> InputMoments:
    """The moments of the inputs of a layer that reads x."""
    net = of_images(nn.Sequential(layer), tuple(x.shape[1:]))
    return gather_moments(net.module, {"0": net.layer("0")}, [x])["0"]


@torch.no_grad()
def counted_macs(model: nn.Module, *leaves: Tensor) -> int:
    """Multiply-accumulates as torch counts them, which does not see fused attention on the CPU."""
    counter, fused = FlopCounterMode(display=False), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter, sdpa_kernel(SDPBackend.MATH):
            model.eval()(*leaves)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def require_same(network: Network, model: nn.Module, *leaves: Tensor) -> None:
    """The network and its units one after another compute what the model does, one sample alone included."""
    for some in (leaves, [leaf[:1] for leaf in leaves]):
        with torch.no_grad():
            expected = named_parts(model.eval()(*[x.clone() for x in some]))
        for found in (network.outputs_of(*some), unit_by_unit(network, *some)):
            assert list(found) == list(expected)
            for name, z in expected.items():
                torch.testing.assert_close(found[name], z, rtol=0, atol=2e-5 * float(z.abs().max()))


def task_of(network: Network, x: Tensor, float_x: Tensor, store: Store, early_stopping: bool = True) -> UnitTask:
    """The task of a network of one unit that reads x, and whose float twin reads float_x."""
    twin = network.copy()
    (unit,), (float_unit,) = network.units, twin.units
    layers, float_layers = ({name: net.layer(name) for name in unit.layers} for net in (network, twin))
    return UnitTask(
        unit.name,
        unit.module,
        layers,
        (x,),
        float_unit.module,
        float_layers,
        (float_x,),
        store,
        unit.floating,
        None,
        {},
        early_stopping,
        torch.Generator(),
    )
