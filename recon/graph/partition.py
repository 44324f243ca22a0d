"""Which nodes are reconstructed together: blocks, found from how tensors flow and from the modules that ran.

A stretch of the graph that can be cut at single tensors is a chain. What cannot be cut there, a branch and its join, is
a block of the smallest module that holds it, and so are the other instances of that module's class. Where that module
holds repeated modules of several layers each (the encoder with a mask that is alive all along, the U-Net, the dense
block, the exchange unit), these are looked at one by one instead, and tensors cross the borders between them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from recon.graph.nodes import SAMPLES, STACK
from recon.graph.units import flow_nodes, is_layer, label

_PLAIN = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_HEADS = ("pool", "dropout", "mean")
MOST = 12  # layers of a block where it could be divided

Span = tuple[int, int]


def partition(module: fx.GraphModule, kinds: Mapping[str, type[nn.Module]]) -> None:
    """Labels every node of a captured module with its unit. `kinds` are the classes of the model's modules that hold
    other modules, by path."""
    flow = _Flow(module, kinds)
    if not flow.nodes:
        return
    spans = _Blocks(flow)
    spans.divide((0, len(flow.nodes)), None)
    groups = _attached(flow, spans.joined())
    groups = _crossable(flow, _unshared(flow, groups))
    for span in groups:
        label(flow.nodes[slice(*span)], _name(flow, span, spans.types))


class _Flow:
    """What is computed from the samples, in order, with what is alive where."""

    def __init__(self, module: fx.GraphModule, kinds: Mapping[str, type[nn.Module]]) -> None:
        self.module, self.kinds = module, kinds
        self.nodes = flow_nodes(module.graph)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        end = len(self.nodes)
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        self.values = [*placeholders, *self.nodes]
        self.made = {node: self.index.get(node, -1) for node in self.values}
        self.uses = {node: sorted(self._uses(node, end)) for node in self.values}
        self.layer = [str(node.target) if is_layer(module, node) else None for node in self.nodes]
        stacks: list[tuple[str, ...]] = [node.meta.get(STACK, ()) for node in self.nodes]
        self.paths = [tuple(path for path in stack if path in kinds) for stack in stacks]

    def _uses(self, node: fx.Node, end: int) -> set[int]:
        found: set[int] = set()
        todo = list(node.users)
        while todo:
            user = todo.pop()
            if user.op == "output":
                found.add(end)
            elif user in self.index:
                found.add(self.index[user])
            elif not user.meta.get("counts"):
                todo += user.users
        return found

    def layers(self, span: Span) -> list[str]:
        return list(dict.fromkeys(name for name in self.layer[slice(*span)] if name))

    def crossing(self, span: Span) -> list[list[fx.Node]]:
        """By node of the span, the tensors that are alive behind it, as far as the span makes or reads them."""
        start, stop = span
        alive: list[list[fx.Node]] = [[] for _ in range(start, stop)]
        for node in self.values:
            uses = [use for use in self.uses[node] if use >= start]
            inside = [use for use in uses if use < stop]
            if not uses or (self.made[node] < start and not inside) or self.made[node] >= stop:
                continue
            last = max(inside) if self.made[node] < start else min(max(uses), stop)
            for at in range(max(self.made[node], start), min(last, stop)):
                alive[at - start].append(node)
        return alive

    def home(self, span: Span) -> str | None:
        """The smallest module that holds all nodes of a span and is no plain container; None: the model itself."""
        first, *rest = self.paths[slice(*span)]
        for path in reversed(first):
            if self.kinds[path] not in _PLAIN and all(path in paths for paths in rest):
                return path
        return None

    def child(self, at: int, home: str | None) -> str | None:
        """The outermost module below `home`, no plain container, that runs the node."""
        paths = self.paths[at]
        below = paths if home is None else paths[paths.index(home) + 1 :]
        return next((path for path in below if self.kinds[path] not in _PLAIN), None)

    def spans_of(self, span: Span, home: str | None) -> list[tuple[Span, str | None]]:
        """A span cut where another module below `home` runs."""
        cut: list[tuple[Span, str | None]] = []
        for at in range(*span):
            child = self.child(at, home)
            if cut and cut[-1][1] == child:
                cut[-1] = (cut[-1][0][0], at + 1), child
            else:
                cut.append(((at, at + 1), child))
        return cut


def can_cross(node: fx.Node) -> bool:
    """The value can be handed from unit to unit: a tensor with one axis of samples."""
    return "shape" in node.meta and node.meta.get(SAMPLES) is not None


@dataclass
class _Blocks:
    """Spans of one unit each, in order; `types` are the classes of blocks, `trunks` of modules that hold blocks."""

    flow: _Flow
    spans: list[Span] = field(default_factory=list)
    types: set[type[nn.Module]] = field(default_factory=set)
    trunks: set[type[nn.Module]] = field(default_factory=set)

    def divide(self, span: Span, home: str | None) -> None:
        """Cuts a span that `home` runs: where one tensor is alive, then what is left by modules."""
        for part in self._chain(span):
            if not self.flow.layers(part) or part[1] - part[0] == 1:
                self.spans.append(part)
                continue
            inner = self.flow.home(part) or home
            if not self._divisible(part, inner):
                self.spans += self._whole(part, inner)
                continue
            if inner is not None:
                self.trunks.add(self.flow.kinds[inner])
            for sub, child in self.flow.spans_of(part, inner):
                if child is not None and sub != part:
                    self.divide(sub, child)
                else:
                    for piece in self._chain(sub):
                        self.spans += self._whole(piece, inner)

    def _chain(self, span: Span) -> list[Span]:
        cuts = [span[0]]
        for at, alive in enumerate(self.flow.crossing(span), span[0]):
            if at + 1 < span[1] and len(alive) == 1 and can_cross(alive[0]):
                cuts.append(at + 1)
        return list(zip(cuts, [*cuts[1:], span[1]], strict=True))

    def _divisible(self, span: Span, home: str | None) -> bool:
        """`home` holds repeated modules of several layers, or is the model, or holds too much, and one such module."""
        inside = [
            (child, len(self.flow.layers(sub))) for sub, child in self.flow.spans_of(span, home) if child is not None
        ]
        composite = {child for child, layers in inside if layers > 1}
        classes = Counter(self.flow.kinds[child] for child in composite)
        large = home is None or len(self.flow.layers(span)) > MOST
        return max(classes.values(), default=0) > 1 or (large and bool(composite))

    def _whole(self, span: Span, home: str | None) -> list[Span]:
        """A span as one block; layer by layer where it is the model's own code and holds too much."""
        layers = self.flow.layers(span)
        if home is not None and layers and span[1] - span[0] > 1 and self.flow.home(span) == home:
            self.types.add(self.flow.kinds[home])
        if len(layers) <= MOST or home is not None:
            return [span]
        starts = [span[0], *(at for at in range(span[0] + 1, span[1]) if self.flow.layer[at])]
        return list(zip(starts, [*starts[1:], span[1]], strict=True))

    def joined(self) -> list[tuple[Span, bool]]:
        """All spans, those within an instance of a block's class joined; with whether they are such an instance."""
        where: dict[str, list[int]] = defaultdict(list)
        for at, paths in enumerate(self.flow.paths):
            for path in paths:
                where[path].append(at)
        spans = {path: (found[0], found[-1] + 1) for path, found in where.items()}
        whole = {path: span for path, span in spans.items() if span[1] - span[0] == len(where[path])}
        counts = Counter(self.flow.kinds[path] for path in where)
        # A class seen once says nothing about other instances: its branches are units by themselves.
        blocks = {path: span for path, span in whole.items() if self.flow.kinds[path] in self.types - self.trunks}
        blocks = {path: span for path, span in blocks.items() if counts[self.flow.kinds[path]] > 1}
        chains = {
            path: span for path, span in whole.items() if path not in blocks and self._is_short_chain(path, whole)
        }
        chains = {path: span for path, span in chains.items() if counts[self.flow.kinds[path]] > 1}
        taken: list[Span] = []
        for candidates in (blocks, chains):
            for path in sorted(candidates, key=lambda path: (path.count("."), path)):
                start, stop = span = candidates[path]
                fits = all(stop <= a or b <= start or (start <= a and b <= stop) for a, b in self.spans)
                if fits and self.flow.layers(span) and all(stop <= a or b <= start for a, b in taken):
                    taken.append(span)
        rest = [span for span in self.spans if not any(a <= span[0] and span[1] <= b for a, b in taken)]
        return sorted([*((span, True) for span in taken), *((span, False) for span in rest)])

    def _is_short_chain(self, path: str, whole: Mapping[str, Span]) -> bool:
        """The module has a few layers one after another, and no smaller module has several of them."""
        layers = len(self.flow.layers(whole[path]))
        inner = [other for other in whole if other.startswith(f"{path}.")]
        smallest = all(len(self.flow.layers(whole[other])) < 2 for other in inner)
        plain = self.flow.kinds[path] in (*_PLAIN, *self.trunks)
        return 1 < layers <= MOST and smallest and not plain


def _attached(flow: _Flow, spans: Sequence[tuple[Span, bool]]) -> list[Span]:
    """Spans that cover all nodes, each with a layer.

    Activations join what is before them; pooling, dropout and changes of shape what follows.
    """
    groups: list[Span] = []
    pending = 0
    for span, _ in spans:
        if flow.layers(span):
            groups.append((pending, span[1]))
            pending = span[1]
        elif groups and pending == span[0] and all(_is_activation(flow.nodes[at]) for at in range(*span)):
            groups[-1] = groups[-1][0], span[1]
            pending = span[1]
    if groups:
        groups[-1] = groups[-1][0], len(flow.nodes)
    return groups


def _is_activation(node: fx.Node) -> bool:
    """A function of one tensor that keeps its shape, and is no pooling."""
    sources = [source for source in node.all_input_nodes if "shape" in source.meta and source.op != "get_attr"]
    same = len(sources) == 1 and sources[0].meta["shape"] == node.meta.get("shape")
    return same and not any(head in str(node.target) for head in _HEADS)


def _unshared(flow: _Flow, groups: Sequence[Span]) -> list[Span]:
    """The same spans, merged until no layer is in two of them."""
    reach: dict[str, int] = {name: at for at, name in enumerate(flow.layer) if name}
    merged: list[Span] = []
    end = 0
    for start, stop in groups:
        if merged and start < end:
            merged[-1] = merged[-1][0], stop
        else:
            merged.append((start, stop))
        end = max(end, *(reach[name] + 1 for name in flow.layers((start, stop))))
    return merged


def _crossable(flow: _Flow, groups: Sequence[Span]) -> list[Span]:
    """The same spans, merged where something crosses the border that cannot be handed on."""
    alive = flow.crossing((0, len(flow.nodes)))
    merged: list[Span] = []
    for start, stop in groups:
        if merged and not all(map(can_cross, alive[start - 1])):
            merged[-1] = merged[-1][0], stop
        else:
            merged.append((start, stop))
    return merged


def _name(flow: _Flow, span: Span, types: set[type[nn.Module]]) -> str:
    """The module whose layers these are, a block rather than a part of it that holds them all; else the first layer."""
    layers = flow.layers(span)
    within = [at for at in range(*span) if flow.layer[at]]
    first, *rest = (flow.paths[at] for at in within)
    shared = [path for path in first if all(path in paths for paths in rest) and flow.kinds[path] not in _PLAIN]
    every = {name for name in flow.layer if name}
    whole = [path for path in shared if {name for name in every if name.startswith(f"{path}.")} <= set(layers)]
    if len(layers) == 1 or not whole:
        return layers[0]
    return next((path for path in reversed(whole) if flow.kinds[path] in types), whole[-1])
