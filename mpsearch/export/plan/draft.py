"""A captured low-bit network as operations on tensors, before every tensor has its grid."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from mpsearch.export.plan.nodes import IDENTITIES, Step, float_step, layer_step, part_step, step_of
from mpsearch.export.plan.records import SAME_GRID, Op, Ref
from recon.graph.layers import Layer
from recon.graph.network import Network
from recon.graph.nodes import aten, constant_nodes, packet_of, value_of
from recon.graph.patterns import relu_cap
from recon.quantizers.inputs import InputGrid, InputQuantizer


@dataclass(slots=True)
class Value:
    """A tensor of the draft: the node whose value it has, ReLU's `cap` where its writer ends in one, and its grid as
    far as one is given. Where it is `real`, nobody reads it but what multiplies its channels, and it gets none."""

    node: fx.Node
    cap: float | None = None
    grid: InputGrid | None = None
    real: bool = False


@dataclass(slots=True)
class Draft:
    """Operations in order, without weights, and the tensors by name. `halvings` are those of the inputs of layers that
    read tensors whose channels are multiplied, `doublings` how often weights and biases of calls that write such
    tensors are doubled, by output."""

    ops: list[Op] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    halvings: dict[str, tuple[int, ...]] = field(default_factory=dict)
    doublings: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def product(self, source: str, result: str, factors: NDArray[np.float32]) -> Op:
        """What multiplies the channels of a tensor."""
        constant = f"{result}_factors"
        self.constants[constant] = factors
        settings = {"target": aten.mul.Tensor, "args": (Ref(source), Ref(constant)), "kwargs": {}}
        return Op("float", result, (source,), result, settings)


def channel_products(halvings: Sequence[int], rank: int) -> NDArray[np.float32]:
    """What the channels of maps (N, C, …) of a rank are multiplied by, so that one step serves all (C, 1, …)."""
    return np.exp2(np.array(halvings, np.float32)).reshape(-1, *(1,) * (rank - 2))


def draft(network: Network, channel_steps: bool = True) -> Draft:
    """The operations of a network, whose layers may have input quantizers with grids.

    A step for every channel is a multiplication of the channels in front of one step, the weights divided by it.
    Without `channel_steps` such inputs have no grid.
    """
    return _Writer(network, channel_steps).draft()


class _Writer:
    """Walks the graph once. `names` are the tensors that nodes stand for."""

    def __init__(self, network: Network, channel_steps: bool) -> None:
        self.module = network.module
        self.channel_steps = channel_steps
        self.scaled: dict[str, str] = {}  # by layer
        self.constants = constant_nodes(network.module.graph)
        self.result = Draft()
        self.names: dict[fx.Node, str] = {}
        self.writers: dict[str, int] = {}

    def draft(self) -> Draft:
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.result.inputs.append(self._value(node))
            elif node.op == "output":
                self.result.outputs = [self._name(leaf) for leaf in node.args[0]]
            elif node.op == "call_module":
                self._module(node)
            elif node.op == "call_function" and node not in self.constants:
                self._function(node)
        return self.result

    def _value(self, node: fx.Node) -> str:
        self.names[node] = node.name
        self.result.values[node.name] = Value(node)
        return node.name

    def _name(self, node: fx.Node) -> str:
        """The tensor, or the constant, that a node stands for."""
        if node not in self.names:
            assert node in self.constants, node
            self.result.constants[node.name] = value_of(self.module, node).cpu().numpy()
            return node.name
        return self.names[node]

    def _module(self, node: fx.Node) -> None:
        module = self.module.get_submodule(str(node.target))
        if isinstance(module, InputQuantizer):
            self._quantizer(node, module)
        else:
            assert isinstance(module, Layer)
            name = str(node.target)
            self._add(node, name, layer_step(module, node), self.scaled.get(name))

    def _quantizer(self, node: fx.Node, quantizer: InputQuantizer) -> None:
        """The tensor that is read gets the grid; where it has another one, it is rounded once more."""
        (source,) = node.all_input_nodes
        cap = quantizer.cap
        if quantizer.halvings:
            self._by_channel(node, source, quantizer.freeze())
            return
        name = self.names[source] if cap is None else self._rectified(node, source, cap)
        value, grid = self.result.values[name], quantizer.freeze()
        if value.grid is None:
            value.grid = max((*_grids(self.module, source), grid), key=lambda other: other.bits)
        self.names[node] = name
        if value.grid != grid:
            self._again(node, name, value.cap, grid)

    def _by_channel(self, node: fx.Node, source: fx.Node, grid: InputGrid) -> None:
        """The tensor with its channels multiplied gets the grid; its layer reads that, others what it stands for."""
        read = self.names[source]
        self.names[node] = read
        if not self.channel_steps:
            return
        layer = str(node.target).rpartition(".")[0]
        factors = channel_products(grid.halvings, len(node.meta["shape"]))
        self.scaled[layer] = scaled = f"{node.name}_scaled"
        self._product(node, read, scaled, factors)
        self.result.values[scaled].grid = replace(grid, halvings=())
        self.result.halvings[layer] = grid.halvings
        if any(user.target != layer for user in node.users):
            self.names[node] = f"{node.name}_restored"
            self._product(node, scaled, self.names[node], np.float32(1) / factors)

    def _product(self, node: fx.Node, source: str, result: str, factors: NDArray[np.float32]) -> None:
        self.result.values[result] = Value(node)
        self._append(self.result.product(source, result, factors))

    def _again(self, node: fx.Node, source: str, cap: float | None, grid: InputGrid) -> None:
        self._value(node)
        self.result.values[node.name].cap, self.result.values[node.name].grid = cap, grid
        self._append(Op("rescale", node.name, (source,), node.name))

    def _rectified(self, node: fx.Node, source: fx.Node, cap: float) -> str:
        """The tensor behind ReLU: that of the source, where nobody else reads it, or a new one."""
        name = self.names[source]
        value = self.result.values[name]
        writer = self.writers.get(name)
        fresh = writer is not None and self.result.ops[writer].kind not in (*SAME_GRID, "concat", "rescale")
        if fresh and len(source.users) == 1 and value.cap is None and value.grid is None:
            value.cap = cap
            if packet_of(node) is not None:
                value.node = node
        else:
            self._value(node)
            self.result.values[node.name].cap = cap
            self._append(Op("rescale", node.name, (name,), node.name))
            return node.name
        return name

    def _function(self, node: fx.Node) -> None:
        cap = relu_cap(node) if packet_of(node) is not None else None
        source = node.args[0] if node.args else None
        if cap is not None and isinstance(source, fx.Node) and node.meta.get("floating"):
            self.names[node] = self._rectified(node, source, cap)
        elif packet_of(node) in IDENTITIES and isinstance(source, fx.Node):
            self.names[node] = self.names[source]
        elif node.target is operator.getitem:
            part = part_step(node, self.constants)
            self._add(node, node.name, part or float_step(node))
        elif _taken_apart(node, self.constants):
            return
        else:
            self._add(node, node.name, step_of(node, self.constants))

    def _add(self, node: fx.Node, name: str, step: Step, scaled: str | None = None) -> None:
        read = [source for source in step.inputs if source not in self.constants]
        inputs = (scaled,) if scaled else tuple(map(self._name, read))
        settings = dict(step.settings)
        if "args" in settings:
            settings["args"] = fx.node.map_arg(settings["args"], self._ref)
            settings["kwargs"] = fx.node.map_arg(settings["kwargs"], self._ref)
        self._value(node)
        self._append(Op(step.kind, name, inputs, node.name, settings))

    def _ref(self, node: fx.Node) -> Any:
        return Ref(self._name(node))

    def _append(self, op: Op) -> None:
        self.writers[op.output] = len(self.result.ops)
        self.result.ops.append(op)


def _grids(module: fx.GraphModule, source: fx.Node) -> list[InputGrid]:
    """The grids of all quantizers without a ReLU that read a node."""
    found = []
    for user in source.users:
        part = module.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(part, InputQuantizer) and part.cap is None:
            found.append(part.freeze())
    return found


def _taken_apart(node: fx.Node, constants: set[fx.Node]) -> bool:
    """Every part of the node's result is a slice of what it reads."""
    users = list(node.users)
    return bool(users) and all(user.target is operator.getitem and part_step(user, constants) for user in users)
