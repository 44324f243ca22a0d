"""TFLite files: TFLite Micro gives the golden answer in every byte, LiteRT nearly so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime_nets import NETS, low_bit, plan_of

from hwmodel import InputError, Precision
from mpsearch.export.plan import golden
from mpsearch.export.plan.build import build_plan
from mpsearch.export.plan.records import Plan
from mpsearch.export.tflite.write import write_tflite
from mpsearch.export.tflite.writer import laid_out

pytest.importorskip("ai_edge_litert", reason="the extra tflite is not installed")

PRECISIONS = ["W8A8", "W4A4"]


def samples(name: str) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((3, *NETS[name][1])).astype(np.float32)


def codes_of(plan: Plan, outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Real outputs, channels last, as the int8 codes, channels first."""
    found = []
    for name, value in zip(plan.outputs, outputs, strict=True):
        grid = plan.tensors[name].grid
        assert grid is not None
        value = np.moveaxis(value, -1, 1) if value.ndim == 4 else value
        found.append(np.rint(value / np.float32(grid.scale)).astype(np.int64) + grid.zero)
    return found


def litert(data: bytes, x: NDArray[np.float32], reference: bool) -> list[NDArray[Any]]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kinds = OpResolverType
    resolver = kinds.BUILTIN_REF if reference else kinds.AUTO
    running = Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=resolver)
    running.allocate_tensors()
    rows = []
    for sample in x:
        running.set_tensor(running.get_input_details()[0]["index"], np.moveaxis(sample[None], 1, -1))
        running.invoke()
        rows.append([running.get_tensor(output["index"]).copy() for output in running.get_output_details()])
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def micro(data: bytes, x: NDArray[np.float32], outputs: int = 1) -> list[NDArray[Any]]:
    runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime", reason="tflite-micro is not installed")
    running = runtime.Interpreter.from_bytes(data, arena_size=4_000_000)
    rows = []
    for sample in x:
        running.set_input(np.ascontiguousarray(np.moveaxis(sample[None], 1, -1)), 0)
        running.invoke()
        rows.append([running.get_output(k).copy() for k in range(outputs)])
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETS)
def test_the_reference_kernels_are_within_a_step(name: str, precision: str) -> None:
    plan = plan_of(name, Precision.parse(precision), real_outputs=False)
    x = samples(name)
    values = golden.execute(plan, x)
    found = codes_of(plan, litert(write_tflite(plan, {}), x, reference=True))
    for ours, out in zip(found, plan.outputs, strict=True):
        assert np.abs(ours - values[out]).max() <= 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETS)
def test_tflite_micro_gives_the_golden_answer(name: str, precision: str) -> None:
    plan = plan_of(name, Precision.parse(precision), real_outputs=False)
    x = samples(name)
    values = golden.execute(plan, x)
    found = codes_of(plan, micro(write_tflite(plan, {}), x, len(plan.outputs)))
    for ours, out in zip(found, plan.outputs, strict=True):
        np.testing.assert_array_equal(ours, values[out])


@pytest.mark.parametrize("name", NETS)
def test_litert_is_within_steps(name: str) -> None:
    plan = plan_of(name, Precision(8, 8), real_outputs=False)
    x = samples(name)
    values = golden.execute(plan, x)
    for ours, out in zip(codes_of(plan, litert(write_tflite(plan, {}), x, reference=False)), plan.outputs, strict=True):
        assert np.abs(ours - values[out]).max() <= 4


def test_symmetric_4_bit_weights_are_stored_as_such_and_compute_the_same() -> None:
    network, layers, leaves = low_bit("residual", Precision(4, 8), symmetric=(4, 8))
    plan = build_plan(network, layers, leaves, real_outputs=False, narrow=True)
    wide, narrow = write_tflite(plan, {}), write_tflite(plan, {}, int4=True)
    assert len(narrow) < len(wide)
    x = leaves[0][:3].numpy()
    expected = golden.execute(plan, x)[plan.outputs[0]]
    for data in (wide, narrow):
        np.testing.assert_array_equal(codes_of(plan, micro(data, x))[0], expected)
    assert np.abs(codes_of(plan, litert(narrow, x, reference=False))[0] - expected).max() <= 2


def test_narrow_weights_have_no_code_of_minus_128() -> None:
    network, layers, leaves = low_bit("residual", Precision(8, 8), symmetric=(8,))
    wide = build_plan(network, layers, leaves)
    narrow = build_plan(network, layers, leaves, narrow=True)
    assert min(int(op.weight.codes.min()) for op in narrow.ops if op.weight is not None) == -127
    assert all(op.weight.exact for op in wide.ops if op.weight is not None)


def test_float_activations_are_refused() -> None:
    plan = plan_of("residual", Precision(4), real_outputs=False)
    with pytest.raises(InputError, match="--format tflite needs integers, but the input x has real numbers"):
        write_tflite(plan, {})


def test_maps_are_channels_last() -> None:
    assert laid_out((1, 3, 5, 7)) == (1, 5, 7, 3)
    assert laid_out((1, 3)) == (1, 3)
