"""Running a network unit by unit, with a look at what passes between units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from torch import Tensor

from recon.graph.network import Network
from recon.graph.units import Unit

Keep = Callable[[Unit, tuple[Tensor, ...]], tuple[Tensor, ...]]


class Passing:
    """The tensors between units, each kept until its last reader has run."""

    def __init__(self, network: Network, leaves: Sequence[Tensor]) -> None:
        graph = network.module.graph
        inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
        (output,) = (node for node in graph.nodes if node.op == "output")
        self.results = [node.name for node in output.all_input_nodes]
        self.order = [node.name for node in output.args[0]]
        self._readers = Counter(name for unit in network.units for name in unit.reads)
        self._readers.update(self.results)
        self._values = dict(zip(inputs, leaves, strict=True))

    def read(self, unit: Unit) -> tuple[Tensor, ...]:
        """What the unit reads."""
        return tuple(self._values[name] for name in unit.reads)

    def write(self, unit: Unit, values: Sequence[Tensor]) -> None:
        """Takes what the unit has made of it, and lets go of what nobody reads any more."""
        for name in unit.reads:
            self._readers[name] -= 1
            if not self._readers[name]:
                del self._values[name]
        self._values.update(zip(unit.writes, values, strict=True))

    def outputs(self) -> tuple[Tensor, ...]:
        """The tensors of the network's result."""
        return tuple(self._values[name] for name in self.order)


def run_units(network: Network, leaves: Sequence[Tensor], keep: Keep) -> dict[str, Tensor]:
    """The network's outputs by path; what every unit writes is replaced by keep(unit, values) on the way."""
    passing = Passing(network, leaves)
    for unit in network.units:
        passing.write(unit, keep(unit, unit.module(*passing.read(unit))))
    return dict(zip(network.names, passing.outputs(), strict=True))
