"""An integer plan as a TFLite model: int8 throughout, channels last, real numbers at its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping

from hwmodel.errors import InputError
from mpsearch.export.plan.records import Plan
from mpsearch.export.tflite.operations import write_clamp, write_operation
from mpsearch.export.tflite.writer import Writer

FILLING, ALIGNMENT = "mpsearch.filling", 4


def filled_tflite(plan: Plan, metadata: Mapping[str, str], int4: bool, size: int) -> bytes:
    """The file of `write_tflite`, filled up to `size` bytes as far as alignment lets it, where it is smaller."""
    plain = write_tflite(plan, metadata, int4)
    for count in range(size - len(plain), 0, -ALIGNMENT):
        filled = write_tflite(plan, {**metadata, FILLING: count * " "}, int4)
        if len(filled) <= size:
            return filled
    return plain


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
