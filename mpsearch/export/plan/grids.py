"""Which grid every tensor has: of the layer that reads it, of a neighbour, or one that suits calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mpsearch.export.plan.draft import Draft, Value, channel_products
from mpsearch.export.plan.records import SAME_GRID, Op
from recon.compute.arithmetic import device_of, mixed_order, picked
from recon.quantizers.channels import ChannelValues
from recon.quantizers.inputs import Histogram

BITS = 8
SAMPLES, BATCH = 128, 16


def fill_grids(draft: Draft, module: fx.GraphModule, leaves: Sequence[Tensor], real_outputs: bool) -> list[str]:
    """Gives a grid to every tensor that integer operations need one of; the names of those that calibration samples,
    whose tensors are (N, …), have decided.

    What only moves values has one grid on both sides. Where `real_outputs`, what a linear map writes as an output of
    the network stays real.
    """
    _stay_real(draft)
    _write_by_channel(draft, module, leaves)
    _backward(draft)
    missing = _forward(draft, real_outputs)
    _calibrate(draft, module, leaves, missing)
    _forward(draft, real_outputs)
    return missing


def _stay_real(draft: Draft) -> None:
    """Nobody rounds what leads to the multiplication of a tensor's channels, and to nothing else, before it is done:
    what has only some of its channels near zero would lose them."""
    readers: dict[str, list[Op]] = {}
    for op in draft.ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op)
    for op in reversed(draft.ops):
        value, others = draft.values[op.output], readers.get(op.output, [])
        leads = [_multiplies_channels(draft, other) or _passes(draft, other) for other in others]
        value.real = bool(leads) and all(leads) and value.grid is None and op.output not in draft.outputs


def _write_by_channel(draft: Draft, module: fx.GraphModule, leaves: Sequence[Tensor]) -> None:
    """Convolutions that lead there compute in integers still: they write their channels multiplied, on one grid from
    calibration samples, and these are divided again."""
    written = [op for op in draft.ops if op.kind == "conv" and draft.values[op.output].real]
    node = {op.output: draft.values[op.output].node for op in written}
    seen = {name: ChannelValues(torch.ones(at.meta["shape"][1])) for name, at in node.items()}
    _watch(draft, module, leaves, seen)
    ops: list[Op] = []
    for op in draft.ops:
        if op.output not in seen:
            ops.append(op)
            continue
        grid, scaled = seen[op.output].grid(BITS), f"{op.output}_scaled"
        draft.values[scaled] = Value(node[op.output], grid=replace(grid, halvings=()))
        draft.doublings[scaled] = grid.halvings
        factors = channel_products(grid.halvings, len(node[op.output].meta["shape"]))
        ops += [replace(op, output=scaled), draft.product(scaled, op.output, np.float32(1) / factors)]
    draft.ops = ops


def _multiplies_channels(draft: Draft, op: Op) -> bool:
    return op.kind == "float" and f"{op.output}_factors" in draft.constants


def _passes(draft: Draft, op: Op) -> bool:
    return op.kind in ("table", "add", "mul") and draft.values[op.output].real


def _backward(draft: Draft) -> None:
    """Hands grids to what values were moved from. Where a result has only some of the values, all who read the tensor
    must agree: the others' values may lie beyond its grid."""
    readers: dict[str, list[Op]] = {}
    for op in draft.ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op)
    for op in reversed(draft.ops):
        result = draft.values[op.output]
        if op.kind not in (*SAME_GRID, "concat") or result.grid is None:
            continue
        for name in op.inputs:
            others = [
                draft.values[other.output].grid for other in readers[name] if other.kind in (*SAME_GRID, "concat")
            ]
            alone = len(others) == len(readers[name]) and all(grid == result.grid for grid in others)
            whole = op.kind not in ("slice", "maxpool")
            if draft.values[name].grid is None and (whole or alone) and name not in draft.outputs:
                draft.values[name].grid = result.grid


def _forward(draft: Draft, real_outputs: bool) -> list[str]:
    """Hands grids on; the names of tensors that need one and get none of a neighbour."""
    missing: list[str] = []
    known = {name for name, value in draft.values.items() if value.grid is not None}
    read = {name for op in draft.ops for name in op.inputs}
    for op in draft.ops:
        result = draft.values[op.output]
        if result.real or op.output in known or not known.issuperset(op.inputs) or op.kind in ("float", "embedding"):
            continue
        if real_outputs and op.kind == "linear" and op.output in draft.outputs and op.output not in read:
            continue
        source = draft.values[op.inputs[0]]
        if op.kind in SAME_GRID:
            result.grid = source.grid
        elif result.grid is None:
            missing.append(op.output)
        known.add(op.output)
    return missing


@torch.no_grad()
def _calibrate(draft: Draft, module: fx.GraphModule, leaves: Sequence[Tensor], names: Sequence[str]) -> None:
    seen = {name: Histogram() for name in names}
    _watch(draft, module, leaves, seen)
    for name, histogram in seen.items():
        draft.values[name].grid = histogram.grid(BITS)


def _watch(
    draft: Draft, module: fx.GraphModule, leaves: Sequence[Tensor], seen: Mapping[str, Histogram | ChannelValues]
) -> None:
    """Shows the values of tensors to what looks at them, on calibration samples."""
    if not seen:
        return
    watching = _Watching(module, {draft.values[name].node: looks.add for name, looks in seen.items()})
    for pick in torch.split(mixed_order(leaves[0])[:SAMPLES], BATCH):
        watching.run(*picked(leaves, pick, device_of(module)))


class _Watching(fx.Interpreter):
    """Runs a module and shows values of its nodes."""

    def __init__(self, module: fx.GraphModule, see: dict[fx.Node, Callable[[Tensor], None]]) -> None:
        super().__init__(module)
        self.see = see

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.see:
            self.see[n](result)
        return result


def one_grid_each(draft: Draft) -> list[Op]:
    """The operations, rounding once more where one that computes on a single grid is to write on another."""
    ops: list[Op] = []
    for op in draft.ops:
        result = draft.values[op.output]
        source = draft.values[op.inputs[0]].grid if op.inputs else None
        if op.kind in SAME_GRID and result.grid is not None and source not in (None, result.grid):
            before = f"{op.output}_moved"
            draft.values[before] = type(result)(result.node, None, source)
            ops += [
                Op(op.kind, op.name, op.inputs, before, op.settings),
                Op("rescale", before, (before,), op.output),
            ]
        else:
            ops.append(op)
    return ops
