"""Encodings beside a float model: applied by the formulas of their specification, they give the low-bit network."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime_nets import NETS, low_bit

from hwmodel import Precision
from mpsearch.export.encodings import VERSIONS, as_json, encodings_of, inexpressible
from mpsearch.export.onnx.real import RealModel, write_real
from mpsearch.export.plan import golden
from mpsearch.export.plan.build import build_plan
from mpsearch.export.plan.records import Plan

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
Array = NDArray[np.float32]


def exported(name: str, precision: str) -> tuple[Plan, RealModel, dict[str, dict[str, Any]], Array]:
    """A network's plan, its float model, its encodings by version, and samples."""
    network, layers, leaves = low_bit(name, Precision.parse(precision))
    plan = build_plan(network, layers, leaves)
    made = write_real(plan, {"key": "value"}, (np.dtype(np.float32),))
    onnx.checker.check_model(made.model, full_check=True)
    found = encodings_of(plan, made.tensors, made.weights)
    return plan, made, {version: json.loads(as_json(*found, version)) for version in VERSIONS}, leaves[0].numpy()


def grid_of(entry: dict[str, Any]) -> tuple[Array, Array, float, float]:
    """Scale, zero-point, lowest and highest code of an entry of either version, as the specification has them."""
    if "bw" in entry:
        return np.float32(entry["scale"]), -np.float32(entry["offset"]), 0, 2 ** entry["bw"] - 1
    kind = entry["output_dtype"]
    bits = int(kind.removeprefix("u").removeprefix("int"))
    low = 0 if kind.startswith("u") else -(2 ** (bits - 1))
    scale = np.float32(entry["y_scale"])
    return scale, np.float32(entry.get("y_zero_point", np.zeros_like(scale))), low, low + 2**bits - 1


def entries(encodings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    lists = (encodings.get(key, []) for key in ("activation_encodings", "param_encodings", "encodings"))
    return {entry["name"]: entry for some in lists for entry in some}


def simulated(made: RealModel, encodings: dict[str, Any]) -> Any:
    """The float model with every tensor of the encodings rounded, by plain arithmetic, to its grid."""
    model = onnx.ModelProto()
    model.CopyFrom(made.model)
    known, nodes, renamed = entries(encodings), [], {}

    def rounded(name: str) -> list[Any]:
        scale, zero, low, high = grid_of(known[name])
        parts = {"s": scale, "z": zero, "l": np.float32(low), "h": np.float32(high)}
        for key, value in parts.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value).reshape(()), f"{name}.{key}"))
        steps = [("Div", "s"), ("Round", ""), ("Add", "z"), ("Clip", "l"), ("Sub", "z"), ("Mul", "s")]
        found, at = [], name
        for number, (kind, other) in enumerate(steps):
            result = f"{name}.on_grid" if number == len(steps) - 1 else f"{name}.{number}"
            read = [at, f"{name}.l", f"{name}.h"] if kind == "Clip" else [at, *([f"{name}.{other}"] if other else [])]
            found.append(onnx.helper.make_node(kind, read, [result]))
            at = result
        return found

    weights = set(made.weights.values())
    for value in model.graph.input:
        if value.name in known:
            nodes += rounded(value.name)
            renamed[value.name] = f"{value.name}.on_grid"
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        nodes.append(node)
        for name in node.output:
            if name in known and name not in weights:
                nodes += rounded(name)
                renamed[name] = f"{name}.on_grid"
    assert set(renamed) | weights == set(known)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["W8A8", "W4A8", "W2A4"])
@pytest.mark.parametrize("name", NETS)
def test_the_float_model_on_its_grids_is_the_low_bit_one(name: str, precision: str, version: str) -> None:
    plan, made, encodings, samples = exported(name, precision)
    found = simulated(made, encodings[version]).run(None, {plan.inputs[0]: samples})
    expected = golden.outputs(plan, golden.execute(plan, samples))
    for ours, theirs in zip(found, expected, strict=True):
        apart = np.sqrt(np.mean((ours - theirs) ** 2))
        assert apart < (0.2 if precision == "W2A4" else 0.06) * theirs.std()  # int8 biases and ties, as in test_onnx


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_weights_lie_on_the_grids_that_are_written(bits: int, version: str) -> None:
    _, made, encodings, _ = exported(next(iter(NETS)), f"W{bits}A32")
    known = entries(encodings[version])
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.model.graph.initializer}
    assert set(known) == set(made.weights.values())
    for name, entry in known.items():
        scale, zero, low, high = (np.asarray(part) for part in grid_of(entry))
        shape = (-1, *(1,) * (weights[name].ndim - 1))
        scale, zero = scale.reshape(shape), zero.reshape(shape)
        codes = np.rint(weights[name] / scale) + zero
        assert ((codes >= low) & (codes <= high)).all()
        assert np.allclose((codes - zero) * scale, weights[name], rtol=1e-5, atol=1e-9)
        assert entry.get("bw", bits) in (bits, bits + 1)  # one more where zero-points count in halves


def test_widths_without_a_type_are_named() -> None:
    plan, made, encodings, _ = exported(next(iter(NETS)), "W4A6")
    activations, _ = encodings_of(plan, made.tensors, made.weights)
    odd = inexpressible(activations)
    widths = {name: entry.get("bw") for name, entry in entries(encodings["1.0.0"]).items()}
    assert odd == [one.name for one in activations if widths[one.name] == 6]
    assert odd


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("aimet_onnx") is None, reason="aimet-onnx is not installed")
@pytest.mark.parametrize("version", VERSIONS)
def test_aimet_simulates_the_low_bit_network(version: str, tmp_path: Path) -> None:
    from aimet_onnx.quantsim import QuantizationSimModel, load_encodings_to_sim

    plan, made, encodings, samples = exported(next(iter(NETS)), "W4A8")
    (tmp_path / "model.encodings").write_text(json.dumps(encodings[version]))
    sim = QuantizationSimModel(
        made.model, param_type="int8", activation_type="int8", dummy_input={plan.inputs[0]: samples[:1]},
        providers=["CPUExecutionProvider"],
    )  # fmt: skip
    load_encodings_to_sim(sim, str(tmp_path / "model.encodings"), strict=False)
    found = np.concatenate([sim.session.run(None, {plan.inputs[0]: one[None]})[0] for one in samples])
    (expected,) = golden.outputs(plan, golden.execute(plan, samples))
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.06 * expected.std()


def test_what_aimet_has_measured_is_near_the_packed_file() -> None:
    """KL 1.15 times at most but for chance at 0.002 nats, top-1 within 0.5 points, 1.5 at 4-bit activations."""
    results = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "bench_aimet.json"
    rows = json.loads(results.read_text())["rows"]
    assert len(rows) >= 4
    for row in rows:
        near = 1.5 if any(precision.endswith("A4") for precision in row["precisions"]) else 0.5
        for found in row["aimet"].values():
            assert found["kl"] <= 1.15 * row["packed"]["kl"] + 1e-4, row["run"]
            assert abs(found["top1"] - row["packed"]["top1"]) <= near, row["run"]
