"""The integer plan and its golden executor against arithmetic on real numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from runtime_nets import NETS, low_bit, plan_of
from torch import nn

from hwmodel import BitConfig, Precision
from mpsearch.export.plan import golden
from mpsearch.export.plan.arithmetic import multiplier, multiply
from mpsearch.export.plan.build import build_plan, simulated_plan
from mpsearch.export.plan.real import compute, constant_of, real, real_layer
from mpsearch.export.plan.weights import layer_weight
from recon.graph.network import capture
from recon.quantizers.insert import frozen_inputs, hold_below_caps, quantize_inputs, quantizers_of
from recon.quantizers.nearest import nearest
from recon.quantizers.quantized import QuantizedLayers, plainly_rounded, quantized
from recon.quantizers.weights import QuantizedWeight, decode, encode, search_grid


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("halves", [False, True])
def test_signed_weights_are_the_stored_ones_below_8_bits(bits: int, halves: bool) -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(bits)) + 0.3
    grid = search_grid(weight, bits, halves=halves)
    stored = QuantizedWeight(grid, encode(weight, grid).to(torch.uint8))
    made = layer_weight(stored, torch.zeros(6), 0.1)
    codes, scale = made.codes, made.scale
    values = codes * scale.reshape(-1, 1, 1, 1)
    assert made.exact or bits == 8
    if made.exact:
        np.testing.assert_array_equal(values, decode(stored.codes.float(), grid).numpy())
    else:  # rounded once more, to the nearest of 255 levels
        assert np.all(np.abs(values - stored.dequantize().numpy()) <= 0.5001 * scale.reshape(-1, 1, 1, 1))


def test_a_symmetric_grid_is_exact_at_8_bits() -> None:
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert layer_weight(nearest(weight, Precision(8), symmetric=True), torch.zeros(6), 0.1).exact


def test_a_bias_that_would_overflow_gets_larger_steps() -> None:
    weight = torch.full((2, 3), 1e-6)
    weight[1] = 1
    stored = nearest(weight, Precision(8), symmetric=True)
    bias = torch.tensor([3.0, 3.0])
    made = layer_weight(stored, bias, input_scale=1e-4)
    assert made.steps is not None
    assert not made.exact
    assert np.abs(made.steps.astype(np.int64)).max() <= 2**30 * 1.001
    np.testing.assert_allclose(made.steps * made.scale.astype(np.float64) * 1e-4, bias.numpy(), rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_what_integer_formats_hold_is_as_large_as_what_is_stored(bits: int) -> None:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(bits)) + 0.3
    weight[1] *= 1e-6
    grid = search_grid(weight, bits, halves=True)
    stored = QuantizedWeight(grid, encode(weight, grid).to(torch.uint8))
    made = layer_weight(stored, torch.ones(4), 1e-4, narrow=True)
    assert made.kept is not None
    assert made.kept.grid.bits == bits
    assert int(made.kept.codes.max()) < 2**bits
    assert torch.equal(made.kept.grid.scale, made.kept.grid.scale.half().float())
    error = np.abs(made.codes * made.scale[:, None] - stored.dequantize().numpy())
    step = 1 * made.scale[:, None] if bits == 8 else np.zeros((4, 1))
    step[1] = made.scale[1] * 2  # where the bias would have had too many steps
    assert np.all(error <= step / 1.9)
    assert error[1].sum() * 255 * 1e-4 < 1e-5  # beside a bias of 1: weights do not count there


def test_multipliers_are_those_of_real_numbers() -> None:
    generator = np.random.default_rng(0)
    for factor in (0.0, 1e-6, 0.3, 0.5, 0.999999, 1.0, 2.7, 1000.3):
        fixed, shift = multiplier(factor)
        assert fixed == 0 or 2**30 <= fixed < 2**31
        x = generator.integers(-(2**20), 2**20, 1000)
        np.testing.assert_allclose(multiply(x, fixed, shift), x * factor, atol=1.0, rtol=1e-8)


@pytest.mark.parametrize("precision", ["W8A8", "W2A8", "W4A4", "W3A6"])
@pytest.mark.parametrize("name", NETS)
def test_every_integer_operation_is_within_a_step_of_real_numbers(name: str, precision: str) -> None:
    """From the very integers that it reads, each operation gives what real arithmetic and rounding give."""
    plan = plan_of(name, Precision.parse(precision), real_outputs=False)
    x = np.random.default_rng(1).standard_normal((4, *NETS[name][1])).astype(np.float32)
    values = golden.execute(plan, x)
    assert not plan.floats(), [op.name for op in plan.floats()]
    for op in plan.ops:
        read = [torch.from_numpy(real(plan.tensors[key], values[key]).copy()) for key in op.inputs]
        target = plan.tensors[op.output]
        assert target.grid is not None
        if op.weight is not None:  # as the integer weights are
            assert op.weight.steps is not None
            shape = (-1, *(1,) * (op.weight.codes.ndim - 1))
            integer = torch.from_numpy(op.weight.codes * op.weight.scale.reshape(shape))
            shape = (-1, *(1,) * (op.weight.codes.ndim - 2))
            exact = golden.apply_layer(op, read[0], integer) + torch.from_numpy(op.weight.bias).view(shape)
        else:
            exact = compute(op, read, target, real_layer, constant_of(plan))
        expected = np.clip(exact.numpy() / target.grid.scale + target.grid.zero, target.grid.low, target.grid.high)
        allowed = 1.6 if op.kind == "concat" else 1.02
        if op.weight is not None:  # half a step of the bias, which is coarser than the result where bits are few
            source = plan.tensors[op.inputs[0]].grid
            assert source is not None
            allowed += 0.5 * float(op.weight.scale.max()) * source.scale / target.grid.scale
        off = np.abs(values[op.output] - expected).max()
        assert off <= allowed, (op.kind, op.name, off)


@pytest.mark.parametrize("name", NETS)
def test_the_golden_answer_is_near_the_fake_quantized_network(name: str) -> None:
    network, layers, leaves = low_bit(name, Precision(8, 8))
    plan = build_plan(network, layers, leaves)
    found = golden.outputs(plan, golden.execute(plan, *(leaf.numpy() for leaf in leaves)))
    with torch.no_grad():
        expected = quantized(network, layers).module(*leaves)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.sqrt(np.mean((ours - theirs.numpy()) ** 2)) < 0.03 * float(theirs.std() + theirs.abs().mean())


def test_float_activations_stay_float_and_exact() -> None:
    network, layers, leaves = low_bit("residual", Precision(4))
    plan = build_plan(network, layers, leaves)
    assert all(tensor.grid is None for tensor in plan.tensors.values())
    (found,) = golden.outputs(plan, golden.execute(plan, leaves[0].numpy()))
    with torch.no_grad():
        (expected,) = quantized(network, layers).module(*leaves)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_one_tensor_read_on_two_grids_is_rounded_once_more() -> None:
    network, layers, leaves = low_bit("residual", Precision(8, 8))
    layers.inputs["wide.0"] = type(layers.inputs["wide.0"])(4, 0.4, 0)
    plan = build_plan(network, layers, leaves)
    assert plan.tensors[next(op for op in plan.ops if op.name == "wide.0").inputs[0]].grid is not None
    grids = {op.name: plan.tensors[op.inputs[0]].grid for op in plan.ops if op.weight is not None}
    assert grids["wide.0"] is not None
    assert grids["wide.0"].high - grids["wide.0"].low <= 15


@pytest.mark.parametrize("below", [False, True])
def test_steps_below_a_cap_leave_no_code_to_cut_off(below: bool) -> None:
    network, _, leaves = low_bit("residual", Precision(8, 8))
    work = quantize_inputs(network, dict.fromkeys(network.table.names, 8))
    layers = {name: work.layer(name) for name in work.table.names}
    for quantizer in quantizers_of(layers.values()):
        quantizer.set_step_size(math.log(6 / 230), 0)
    if below:
        hold_below_caps(work.module, layers)
    weights = {name: nearest(layer.weight, Precision(8), symmetric=True) for name, layer in layers.items()}
    found = QuantizedLayers(weights, {name: layer.bias for name, layer in layers.items()}, frozen_inputs(layers))
    plan = build_plan(network, found, leaves)
    capped = [tensor for tensor in plan.tensors.values() if tensor.cap == 6]
    assert len(capped) == 3
    assert {tensor.grid is not None and tensor.grid.whole for tensor in capped} == {below}
    assert found.inputs["stem.0"].scale == found.inputs["head"].scale > 6 / 255  # no ReLU6 before them


@pytest.mark.parametrize("precision", ["W8A8", "W4A6"])
def test_a_step_for_every_channel_is_a_product_before_it_is_rounded(precision: str) -> None:
    network, layers, leaves = low_bit("smooth", Precision.parse(precision))
    assert layers.inputs["one"].halvings[1]
    assert layers.inputs["two"].halvings[1]
    plan = build_plan(network, layers, leaves)
    ops = {op.output: op for op in plan.ops}
    for name in ("one", "two"):
        layer = next(op for op in plan.ops if op.name == name)
        assert plan.is_integer(layer)
        product = ops[layer.inputs[0]]
        assert product.kind == "float"
        assert plan.tensors[product.inputs[0]].grid is None, "nothing rounds it before"
    stem = next(op for op in plan.ops if op.name == "stem")
    assert plan.is_integer(stem), "it writes its channels multiplied"
    with torch.no_grad():
        (expected,) = quantized(network, layers).module(*leaves)
    (found,) = golden.outputs(plan, golden.execute(plan, leaves[0].numpy()))
    assert np.sqrt(np.mean((found - expected.numpy()) ** 2)) < 0.05 * float(expected.std())
    exact = simulated_plan(network, layers)
    (found,) = golden.outputs(exact, golden.execute(exact, leaves[0].numpy()))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4 * float(expected.std()))


def test_what_else_reads_a_tensor_of_many_steps_reads_what_it_stands_for() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.silu(self.stem(x))
            return x + self.one(x)

    torch.manual_seed(0)
    model = Added().eval()
    with torch.no_grad():
        model.stem.weight[0] *= 20
    network = capture(model, torch.randn(2, 3, 8, 8))
    leaves = (torch.randn(8, 3, 8, 8),)
    layers = plainly_rounded(network, leaves, BitConfig.uniform(network.table.names, Precision(8, 4)))
    assert any(layers.inputs["one"].halvings)
    plan = simulated_plan(network, layers)
    with torch.no_grad():
        (expected,) = quantized(network, layers).module(*leaves)
    (found,) = golden.outputs(plan, golden.execute(plan, leaves[0].numpy()))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_runtime_without_them_gets_one_step_and_a_note() -> None:
    network, layers, leaves = low_bit("smooth", Precision(8, 8))
    plan = build_plan(network, layers, leaves, channel_steps=False, real_outputs=False)
    assert not plan.floats()
    assert any("one step for all channels of the inputs of one, two" in note for note in plan.notes)
    network = network.with_one_step()
    layers = plainly_rounded(network, leaves, BitConfig.uniform(network.table.names, Precision(8, 8)))
    assert not any("one step" in note for note in build_plan(network, layers, leaves, channel_steps=False).notes)
