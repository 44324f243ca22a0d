"""An integer plan as a TFLite model: int8 throughout, channels last, real numbers at its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping

from hwmodel.errors import InputError
from mpsearch.export.plan.records import Plan
from mpsearch.export.tflite.operations import write_clamp, write_operation
from mpsearch.export.tflite.writer import Writer


def write_tflite(plan: Plan, metadata: Mapping[str, str], int4: bool = False) -> bytes:
    """The file of a plan whose every tensor has a grid. Raises InputError where TFLite has no integer operator."""
    writer = Writer(plan, int4)
    model = writer.model
    inputs = []
    for name in plan.inputs:
        if plan.tensors[name].grid is None:
            raise InputError(
                f"--format tflite needs integers, but the input {name} has real numbers; export --format onnx"
            )
        inputs.append(model.tensor(f"{name}_real", writer.shape(name), "FLOAT32"))
        whole = writer.grid(name).whole
        target = writer.result(name) if whole else writer.inner(f"{name}_all", writer.shape(name), writer.grid(name))
        model.operator("QUANTIZE", 1, inputs[-1:], target, "QuantizeOptions")
        if not whole:
            write_clamp(writer, name, target)
    for op in plan.ops:
        write_operation(writer, op)
    outputs = []
    for name, path in zip(plan.outputs, plan.names, strict=True):
        outputs.append(model.tensor(path or "output", writer.shape(name), "FLOAT32"))
        model.operator("DEQUANTIZE", 2, [writer.result(name)], outputs[-1], "DequantizeOptions")
    return model.finish(inputs, outputs, metadata)
