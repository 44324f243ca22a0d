"""The computation of a model as a torch.fx graph."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Container, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from recon.graph.layers import is_layer

_PREFIX = "model."
_MEANS = {"adaptive_avg_pool2d", "avg_pool2d", "mean", "AdaptiveAvgPool2d", "AvgPool2d"}
_VIEWS = {"flatten", "view", "reshape", "squeeze", "dropout", "Flatten", "Dropout"}
_RELUS: tuple[object, ...] = (nn.ReLU, torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_")
_RELU6S: tuple[object, ...] = (nn.ReLU6, F.relu6)
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


class _OneInput(nn.Module):
    """Gives a model's further arguments their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _Tracer(fx.Tracer):
    """Layers and modules of `opaque` types are leaves; remembers the innermost module that could not be traced."""

    def __init__(self, opaque: set[type[nn.Module]]) -> None:
        super().__init__()
        self.opaque = opaque
        self.culprit: nn.Module | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_layer(m) or type(m) in self.opaque or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.culprit = self.culprit or m
            raise


def trace_graph(model: nn.Module) -> fx.Graph | None:
    """The graph of model(x), or None where the model's own forward cannot be traced.

    Submodules that cannot be traced are single nodes.
    """
    opaque: set[type[nn.Module]] = set()
    while True:
        tracer = _Tracer(opaque)
        root = _OneInput(model)
        try:
            graph = tracer.trace(root)
        except Exception:  # a model may raise anything when it meets a symbolic value
            if tracer.culprit is None or type(tracer.culprit) in {type(model), *opaque}:
                return None
            opaque.add(type(tracer.culprit))
            continue
        _name_by_model(root, graph)
        _drop_identities(model, graph)
        _drop_in_place(model, graph)
        return graph


def only_call(module: nn.Module, name: str) -> fx.Node | None:
    """The one call of the submodule `name` in a traced module; None where there are several, or it is not traced."""
    nodes = [node for node in module.graph.nodes if node.target == name] if isinstance(module, fx.GraphModule) else []
    return nodes[0] if len(nodes) == 1 else None


def calls_one_of(node: fx.Node, names: Container[object]) -> bool:
    """The node calls one of the submodules `names`."""
    return node.op == "call_module" and node.target in names


def leading_to(module: nn.Module, name: str) -> nn.Module:
    """What of a traced module leads to the one call of its submodule `name`, with the same submodules; `module` itself
    where there is none."""
    node = only_call(module, name)
    if node is None:
        return module
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for original in node.graph.nodes:
        copies[original] = graph.node_copy(original, copies.__getitem__)
        if original is node:
            break
    graph.output(copies[node])
    result = fx.GraphModule(module, graph)
    result.graph.eliminate_dead_code()
    result.recompile()
    return result


def with_pooled_maps(module: nn.Module, names: Iterable[str]) -> tuple[nn.Module, dict[str, nn.Module]]:
    """A module that computes the same with the same submodules, and by layer of `names` that reads means over a map's
    positions, as a classifier does, a submodule of it that this map passes through. Where a module is not traced,
    itself and none."""
    if not isinstance(module, fx.GraphModule):
        return module, {}
    result = fx.GraphModule(module, copy.deepcopy(module.graph))
    maps: dict[str, nn.Module] = {}
    for name in names:
        node = only_call(result, name)
        source = _averaged_by(result, node) if node else None
        if source is None:
            continue
        at = f"pooled_map_{len(maps)}"
        maps[name] = nn.Identity()
        result.add_submodule(at, maps[name])
        with result.graph.inserting_after(source):
            passed = result.graph.call_module(at)
        source.replace_all_uses_with(passed)
        passed.args = (source,)
    result.recompile()
    return result, maps


def _averaged_by(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """What averages, and nothing else but views, make into the input of `node`; None without an average."""
    averaged = False
    while node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        kind = type(module.get_submodule(str(node.target))).__name__ if node.op == "call_module" else node.target
        kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
        if kind not in _MEANS | _VIEWS:
            break
        averaged |= kind in _MEANS
    return node if averaged else None


def is_plain_addition(node: fx.Node) -> bool:
    """The node adds two different things, neither of them scaled."""
    is_sum = node.op in ("call_function", "call_method") and node.target in _ADDITIONS
    return is_sum and not node.kwargs and len(set(node.args)) == 2


def relu_cap(module: nn.Module, node: fx.Node) -> float | None:
    """Where a ReLU in a traced module cuts off, infinity where it does not; None where the node is no ReLU."""
    kind = type(module.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    return 6.0 if kind in _RELU6S else math.inf if kind in _RELUS else None


def module_paths(node: fx.Node) -> list[str]:
    """Names of the modules that were running when the node was called, outermost first, without the model itself."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    inner = [path.removeprefix(_PREFIX) for path in stack if path.startswith(_PREFIX)]
    return [path for path in inner if node.op != "call_module" or path != node.target]


def _name_by_model(root: _OneInput, graph: fx.Graph) -> None:
    """Names relative to the model, not to `root`. Tensors that its code created become attributes of the model."""
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        name = str(node.target)
        if not name.startswith(_PREFIX):
            setattr(root.model, f"traced{name}", getattr(root, name))
            name = f"{_PREFIX}traced{name}"
        node.target = name.removeprefix(_PREFIX)


def _drop_identities(model: nn.Module, graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.Identity):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)


def _drop_in_place(model: nn.Module, graph: fx.Graph) -> None:
    """Turns off `inplace` where nothing else reads the input, so that a unit never changes the tensor it is given."""
    needed: set[nn.Module] = set()
    modules: set[nn.Module] = set()
    for node in graph.nodes:
        alone = all(len(source.users) == 1 for source in node.all_input_nodes)
        if node.op == "call_module":
            (modules if alone else needed).add(model.get_submodule(str(node.target)))
        elif node.kwargs.get("inplace") is True and alone:
            node.kwargs = {**node.kwargs, "inplace": False}
    for module in modules - needed:
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
