"""The profiler: what it measures, what it leaves out, and that it goes on after an interruption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwmodel import LayerSpec, LayerTable
from hwmodel.errors import InputError
from hwmodel.lookup import LayerShape
from hwmodel.precision import Precision
from mpsearch.hardware.profile import FLOAT, layer_model, profile_layers

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def conv(name: str, into: int, out: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> LayerSpec:
    size = -(-9 // stride)
    return LayerSpec(
        name, "conv", into, out, (3, 3), (stride,) * 2, (dilation,) * 2, groups, (9, 9), (size, size), name, name
    )  # fmt: skip


ONE = (1, 1)
TABLE = LayerTable(
    "t", (3, 9, 9),
    (
        conv("a", 3, 8), conv("b", 8, 8, 2), conv("same as b", 8, 8, 2), conv("dw", 8, 8, 1, 1, 8),
        conv("wide", 8, 8, 1, 2), LayerSpec("fc", "linear", 16, 4, ONE, ONE, ONE, 1, ONE, ONE, "fc", "fc"),
    ),
)  # fmt: skip


def test_distinct_shapes_at_every_precision_that_runs() -> None:
    lines: list[str] = []
    table = profile_layers(TABLE, rounds=3, report=lines.append)
    shapes = {LayerShape.of(layer) for layer in TABLE}
    assert len(shapes) == 5
    assert {FLOAT, Precision(8, 8), Precision(8)} <= set(table.precisions)
    for precision in table.precisions:
        rows = [row for row in table.rows if row.precision == precision]
        assert {row.shape for row in rows} == shapes
        assert all(row.seconds >= 0 and row.spread is not None and row.kernel for row in rows)
    left = [line for line in lines if "is left out" in line]
    assert {line.split()[0] for line in left} | {str(p) for p in table.precisions} == {
        line.split()[0].rstrip(":") for line in lines
    }
    assert "onnxruntime" in table.source


def test_an_interrupted_profile_goes_on(tmp_path: Path) -> None:
    partial = tmp_path / "here.partial.json"
    wanted = (FLOAT, Precision(8, 8))

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_layers(TABLE, wanted, rounds=3, report=stop, partial=partial)
    assert partial.is_file()
    lines: list[str] = []
    table = profile_layers(TABLE, wanted, rounds=3, report=lines.append, partial=partial)
    assert lines[0] == f"{FLOAT}: measured before the interruption"
    assert set(table.precisions) == set(wanted)
    assert not partial.exists()
    with pytest.raises(KeyboardInterrupt):
        profile_layers(TABLE, wanted, rounds=3, report=stop, partial=partial)
    lines.clear()
    profile_layers(TABLE, wanted, rounds=4, report=lines.append, partial=partial)  # of other rounds: anew
    assert "before the interruption" not in lines[0]


@pytest.mark.parametrize("precision", [FLOAT, Precision(8), Precision(8, 8)], ids=str)
@pytest.mark.parametrize("layer", TABLE.layers, ids=lambda layer: layer.name)
def test_a_layer_s_model_has_the_shape_that_the_table_says(layer: LayerSpec, precision: Precision) -> None:
    model = layer_model(onnx, layer, precision, np.random.default_rng(0))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    x = np.zeros(source.shape, np.uint8 if "uint8" in source.type else np.float32)
    expected = (1, layer.out_channels, *layer.out_size) if layer.kind == "conv" else (1, layer.out_channels)
    assert session.run(None, {source.name: x})[0].shape == expected


def test_counts_are_checked() -> None:
    with pytest.raises(InputError, match="rounds and threads"):
        profile_layers(TABLE, rounds=0)
    with pytest.raises(InputError, match="runs none of"):
        profile_layers(TABLE, [])
