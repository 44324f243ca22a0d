"""The exported program with quantize and dequantize operations, read back from its file."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from runtime_nets import low_bit

from hwmodel import Precision
from mpsearch.export.plan import golden
from mpsearch.export.plan.build import build_plan
from mpsearch.export.torch.module import exported_program, program_bytes
from recon.quantizers.quantized import quantized


@pytest.mark.parametrize("name", ["neck", "shuffled"])
def test_the_program_computes_what_the_plan_says(name: str) -> None:
    network, layers, leaves = low_bit(name, Precision(8, 8))
    plan = build_plan(network, layers, leaves, real_outputs=False)
    stream = io.BytesIO(program_bytes(exported_program(plan, leaves), {"key": "value"}))
    extra = {"key": ""}
    program = torch.export.load(stream, extra_files=extra).module()
    assert extra["key"] in ("value", b"value")
    expected = golden.outputs(plan, golden.execute(plan, leaves[0].numpy()))
    for k in range(3):
        for ours, theirs in zip(program(leaves[0][k : k + 1]), expected, strict=True):
            apart = np.sqrt(np.mean((ours.detach().numpy()[0] - theirs[k]) ** 2))
            assert apart < 0.05 * theirs.std()


def test_every_layer_reads_quantized_tensors() -> None:
    network, layers, leaves = low_bit("residual", Precision(8, 8))
    program = exported_program(build_plan(network, layers, leaves, real_outputs=False), leaves)
    named = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("dequantize_per_channel" in name for name in named) == len(network.table)


def test_float_activations_stay_float() -> None:
    network, layers, leaves = low_bit("residual", Precision(4))
    program = exported_program(build_plan(network, layers, leaves), leaves).module()
    with torch.no_grad():
        (expected,) = quantized(network, layers).module(leaves[0][:1])
        (found,) = program(leaves[0][:1])
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)
