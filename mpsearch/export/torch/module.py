"""An integer plan as a torch module that any PT2E backend may lower: what `convert_pt2e` leaves behind.

Every reader of a tensor has a dequantization of its own, as partitioners want it, and so have views.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed
import torch.nn.functional as F
from torch import Tensor, nn

from mpsearch.export.plan.real import apply_layer, compute
from mpsearch.export.plan.records import HIGHEST, LOWEST, Grid, Op, Plan

_decomposed = torch.ops.quantized_decomposed


class PlanModule(nn.Module):
    """Carries a plan out on real numbers (N, …) between quantize and dequantize operations."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.places = {op.output: at for at, op in enumerate(plan.ops)}
        for at, op in enumerate(plan.ops):
            if op.weight is None:
                continue
            if op.weight.steps is None:
                self.register_buffer(f"weight_{at}", torch.from_numpy(op.weight.values.copy()))
                self.register_buffer(f"bias_{at}", torch.from_numpy(op.weight.bias.copy()))
                continue
            grid = plan.tensors[op.inputs[0]].grid
            assert grid is not None
            steps = np.float64(np.float32(grid.scale)) * op.weight.scale.astype(np.float64)
            self.register_buffer(f"weight_{at}", torch.from_numpy(op.weight.codes.copy()))
            self.register_buffer(f"scale_{at}", torch.from_numpy(op.weight.scale.copy()))
            self.register_buffer(f"zero_{at}", torch.zeros(len(steps), dtype=torch.int64))
            self.register_buffer(f"bias_{at}", torch.from_numpy((op.weight.steps * steps).astype(np.float32)))
        for name, value in plan.constants.items():
            self.register_buffer(f"constant_{name}", torch.from_numpy(np.array(value)))

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Tensor] = {}
        for name, leaf in zip(self.plan.inputs, leaves, strict=True):
            values[name] = self._stored(name, leaf)
        for op in self.plan.ops:
            read = [self._real(name, values[name]) for name in op.inputs]
            found = compute(op, read, self.plan.tensors[op.output], self._layer, self._constant)
            values[op.output] = self._stored(op.output, found)
        return tuple(self._real(name, values[name]) for name in self.plan.outputs)

    def _stored(self, name: str, x: Tensor) -> Tensor:
        tensor = self.plan.tensors[name]
        grid, cap = tensor.grid, tensor.cap
        if grid is None:
            return x if cap is None else F.relu(x) if math.isinf(cap) else F.hardtanh(x, 0.0, cap)
        if not grid.whole:
            low, high = ((end - grid.zero) * grid.scale for end in (grid.low, grid.high))
            x = F.relu(x) if (grid.low, grid.high) == (grid.zero, HIGHEST) else F.hardtanh(x, low, high)
        result: Tensor = _decomposed.quantize_per_tensor(x, *_numbers(grid))
        return result

    def _real(self, name: str, value: Tensor) -> Tensor:
        grid = self.plan.tensors[name].grid
        if grid is None:
            return value
        result: Tensor = _decomposed.dequantize_per_tensor(value, *_numbers(grid))
        return result

    def _layer(self, op: Op, x: Tensor) -> Tensor:
        at = self.places[op.output]
        weight, bias = getattr(self, f"weight_{at}"), getattr(self, f"bias_{at}")
        if op.weight is not None and op.weight.steps is not None:
            scale, zero = getattr(self, f"scale_{at}"), getattr(self, f"zero_{at}")
            weight = _decomposed.dequantize_per_channel(weight, scale, zero, 0, LOWEST, HIGHEST, torch.int8)
        return apply_layer(op, x, weight, bias)

    def _constant(self, name: str) -> Tensor:
        constant: Tensor = getattr(self, f"constant_{name}")
        return constant


def _numbers(grid: Grid) -> tuple[Any, ...]:
    return grid.scale, grid.zero, LOWEST, HIGHEST, torch.int8


def exported_program(plan: Plan, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The program for one sample of the example's shape."""
    with torch.no_grad():
        return torch.export.export(PlanModule(plan).eval(), tuple(leaf[:1].contiguous() for leaf in example))


def program_bytes(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """The program as a `.pt2` file, which carries the metadata as extra files."""
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files=dict(metadata))
    return stream.getvalue()
