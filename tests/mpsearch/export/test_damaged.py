"""Packed files that are damaged or were made to harm: one line each, nothing run, no memory taken for them."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch import nn

from hwmodel import WEIGHT_BITS, BitConfig, InputError, LayerSpec, LayerTable, Precision
from hwmodel.size import Other, PackedLayout, code_shape, quantized_inputs
from mpsearch.export.header import METADATA, file_digest, read_packed
from mpsearch.export.packed import fill_packed, load_packed, save_packed
from recon.graph.network import Network, capture
from recon.quantizers.quantized import plainly_rounded

Header = dict[str, Any]


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 2)), torch.randn(4, 4), "net")


@pytest.fixture(scope="module")
def good(network: Network, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A packed file of `network`."""
    path = tmp_path_factory.mktemp("good") / "m.safetensors"
    config = BitConfig(network.table.names, (Precision(3, 4), Precision(8, 8)))
    save_packed(path, network, "net.py:make", plainly_rounded(network, (torch.randn(8, 4),), config))
    return path.read_bytes()


def parts(content: bytes) -> tuple[Header, bytes]:
    """Header and data of a file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def whole(header: Any, data: bytes, *, signed: bool = True) -> bytes:
    """A file of them, `signed` with the right digest."""
    if signed and isinstance(header, dict) and isinstance(header.get(METADATA), dict):
        header = {**header, METADATA: {**header[METADATA], "digest": file_digest(header, (data,))}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def same_outputs(ours: Network, theirs: Network) -> bool:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.equal(ours.model(x), theirs.model(x))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_noticed_or_change_nothing(
    data: st.DataObject, good: bytes, network: Network, tmp_path: Path
) -> None:
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        cut = data.draw(st.integers(0, 3) | st.integers(0, len(content)))
        content[at : at + cut] = data.draw(st.binary(max_size=4))
    path = tmp_path / "m.safetensors"
    path.write_bytes(good)
    expected = fill_packed(path, network)
    path.write_bytes(content)
    try:
        found = fill_packed(path, network)
    except InputError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert same_outputs(found, expected)


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.2, 0.5, 0.8, 0.95, 0.999])
def test_a_file_that_is_cut_off(share: float, good: bytes, network: Network, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for extra in (0, 1, 7, 8, 9):
        path.write_bytes(good[: min(int(share * len(good)) + extra, len(good) - 1)])
        with pytest.raises(InputError, match="damaged"):
            fill_packed(path, network)
    path.write_bytes(good + b"\0")
    with pytest.raises(InputError, match="damaged"):
        fill_packed(path, network)


def changed(*keys: str, to: Any) -> Callable[[Header], None]:
    """Sets what is at `keys` of a header."""

    def change(header: Header) -> None:
        *outer, last = keys
        inner: Any = header
        for key in outer:
            inner = inner[key]
        if to is None:
            del inner[last]
        else:
            inner[last] = to(inner[last]) if callable(to) else to

    return change


HOSTILE: dict[str, Callable[[Header], None]] = {
    **{
        f"no {field}": changed(METADATA, field, to=None) for field in ("format", "input", "integers", "layers", "model")
    },
    **{f"{field} a number": changed(METADATA, field, to=1) for field in ("format", "input", "layers", "model")},
    "another format": changed(METADATA, "format", to="mpsearch-packed-2"),
    "no metadata": changed(METADATA, to=None),
    "metadata a list": changed(METADATA, to=[1]),
    "other integers": changed(METADATA, "integers", to="0" * 16),
    "overlap": changed("codes", "data_offsets", to=lambda at: [at[0] - 2, at[1] - 2]),
    "gap": changed("codes", "data_offsets", to=lambda at: [at[0] + 2, at[1] + 2]),
    "backwards": changed("codes", "data_offsets", to=lambda at: at[::-1]),
    "negative offsets": changed("codes", "data_offsets", to=[-8, 0]),
    "three offsets": changed("codes", "data_offsets", to=[0, 1, 2]),
    "offsets of text": changed("codes", "data_offsets", to=["0", "1"]),
    "offsets of NaN": changed("codes", "data_offsets", to=[float("nan"), float("inf")]),
    "offsets of true": changed("codes", "data_offsets", to=[False, True]),
    "no offsets": changed("codes", "data_offsets", to=None),
    "an entry of a number": changed("codes", to=3),
    "huge shape": changed("codes", "shape", to=[2**40]),
    "absurd shape": changed("codes", "shape", to=[10**400]),
    "many huge dimensions": changed("codes", "shape", to=[2**30] * 3),
    "negative shape": changed("codes", "shape", to=[-1]),
    "shape of floats": changed("codes", "shape", to=[1.0]),
    "a thousand dimensions": changed("codes", "shape", to=[1] * 1000),
    "unknown type": changed("codes", "dtype", to="I64"),
    "type of a list": changed("codes", "dtype", to=["U8"]),
    "type of another size": changed("codes", "dtype", to="F32"),
    "no codes": changed("codes", to=None),
    "other name": lambda header: header.update({"x": header.pop("zero_points")}),
    "no layers at all": changed(METADATA, "layers", to=""),
    "bits 9": changed(METADATA, "layers", to=lambda text: text.replace(":3/", ":9/")),
    "bits 1": changed(METADATA, "layers", to=lambda text: text.replace(":3/", ":1/")),
    "bits 32": changed(METADATA, "layers", to=lambda text: text.replace(":3/", ":32/")),
    "bits ٣": changed(METADATA, "layers", to=lambda text: text.replace(":3/", ":٣/")),
    "other bits": changed(METADATA, "layers", to=lambda text: text.replace(":3/", ":4/")),
    "inputs not quantized": changed(METADATA, "layers", to=lambda text: text.replace("/4", "")),
    "a layer twice": changed(METADATA, "layers", to=lambda text: text + " " + text.split(" ")[0]),
    "no shape": changed(METADATA, "layers", to=lambda text: text.replace(":3x4", "")),
    "another shape": changed(METADATA, "layers", to=lambda text: text.replace("3x4", "4x3")),
    "a shape of 10^400": changed(METADATA, "layers", to=lambda text: text.replace("3x4", f"{10**400}x4")),
    "layers moved": changed(METADATA, "layers", to=lambda text: " ".join(reversed(text.split(" ")))),
    "a layer more": changed(METADATA, "layers", to=lambda text: text + " x:3:3x4"),
    "surrogates": changed(METADATA, "layers", to=lambda text: text.replace("0:", "\ud800:")),
    "long names": changed(METADATA, "layers", to=lambda text: text.replace("0:", "x" * 100_000 + ":")),
    "no model": changed(METADATA, "model", to=""),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_header_that_lies(case: str, good: bytes, tmp_path: Path) -> None:
    header, data = parts(good)
    HOSTILE[case](header)
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole(header, data))
    model = nn.Sequential(nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 2))
    tracemalloc.start()
    try:
        if case == "no model":  # the field is for those who bring no model
            load_packed(path, model)
            with pytest.raises(InputError, match="model="):
                load_packed(path)
            return
        with pytest.raises(InputError) as caught:
            load_packed(path, model)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text",
    [
        b"", b"null", b"[]", b"{", b"NaN", b'"text"', b"1" * 5000, b"\xff\xfe", b"[" * 200_000, b'{"a":' * 200_000,
        b'{"__metadata__":null}', b'{"__metadata__":{"format":NaN}}',
        b'{"__metadata__":{"format":"mpsearch-packed-4"}}',
    ],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_a_header_that_is_none(text: bytes, network: Network, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(InputError, match="packed model"):
        fill_packed(path, network)
    path.write_bytes((2**63 + len(text)).to_bytes(8, "little") + text)
    with pytest.raises(InputError, match="damaged"):
        fill_packed(path, network)


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("scales", np.nan), ("scales", np.inf), ("scales", 0), ("scales", -1), ("biases", np.nan), ("biases", -np.inf),
        ("input_scales", 0), ("input_scales", np.nan), ("input_zero_points", 255), ("zero_points", 255),
    ],
)  # fmt: skip
def test_values_that_no_grid_has(tensor: str, value: float, good: bytes, network: Network, tmp_path: Path) -> None:
    header, data = parts(good)
    start, end = header[tensor]["data_offsets"]
    kind = {"F16": "<f2", "U8": "u1"}[header[tensor]["dtype"]]
    changed = np.frombuffer(data[start:end], kind).copy()
    changed[0] = value
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole(header, data[:start] + changed.tobytes() + data[end:]))
    with pytest.raises(InputError, match="is damaged"):
        fill_packed(path, network)


def test_what_is_no_packed_model(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for way in (tmp_path, path):
        with pytest.raises(InputError, match="no packed model at"):
            load_packed(way)
    save_file({"a": np.zeros(1, np.float32)}, path)
    with pytest.raises(InputError, match="not a packed model"):
        load_packed(path)
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match="damaged"):
        load_packed(path)


CODE = """
from pathlib import Path
from torch import nn
Path({ran!r}).touch()

def make():
    return nn.Sequential(nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 2))

def other():
    return nn.Linear(4, 3)
"""


@pytest.fixture
def renamed(good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a file that says that it is of another model, in a folder with code in `net.py`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE.format(ran=str(tmp_path / "ran")))

    def rename(reference: str) -> Path:
        header, data = parts(good)
        header[METADATA]["model"] = reference
        path = tmp_path / "m.safetensors"
        path.write_bytes(whole(header, data))
        return path

    return rename


@pytest.mark.parametrize(
    "reference",
    ["net.py:make", "net:make", "./net.py:make", "os:getcwd", "antigravity:main", "pdb:main", "torchvision:os:getcwd",
     "torchvision:fasterrcnn_resnet50_fpn", "torchvision:resnet18?weights=1", "torchvision:resnet18?num_classes=x",
     "torchvision:resnet18?num_classes=9999999", "torchvision:regnet_y_128gf", "torchvision:nothing", "torchvision:",
     "torchvision:resnet18?image_size=3", "torchvision:vit_b_16?image_size=1", "nothing", "", "a" * 10_000, "a\nb:c"],
)  # fmt: skip
def test_a_file_runs_nothing(reference: str, renamed: Callable[[str], Path], tmp_path: Path) -> None:
    path = renamed(reference)
    monitored = os.getcwd()
    with pytest.raises(InputError) as caught:
        load_packed(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    assert not (tmp_path / "ran").exists()
    assert os.getcwd() == monitored


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_a_large_architecture_is_refused_by_its_shapes(name: str, renamed: Callable[[str], Path]) -> None:
    path = renamed(f"torchvision:{name}?num_classes=9999999")
    with pytest.raises(InputError, match=r"is too small for .*, which has [0-9,]+ parameters"):
        load_packed(path)


def test_code_is_run_where_it_is_allowed(renamed: Callable[[str], Path], network: Network, tmp_path: Path) -> None:
    path = renamed("net.py:make")
    expected = fill_packed(path, network)
    with pytest.raises(InputError, match=r"allow='net.py:make'\).*model=MODULE"):
        load_packed(path)
    for wrong in ("net.py:other", "other.py:make", "net:make", "os:abort"):
        with pytest.raises(InputError, match="and allowed is"):
            load_packed(path, allow=wrong)
    assert not (tmp_path / "ran").exists()
    for right in ("net.py:make", str(tmp_path / "net.py:make"), "./net.py:make"):
        x = torch.randn(5, 4)
        assert torch.equal(load_packed(path, allow=right)(x), expected.model(x))
    assert (tmp_path / "ran").exists()
    with pytest.raises(InputError, match="'net:make'"):
        load_packed(renamed("net:make"), allow="net.py:make")


def layers_of(draw: st.DrawFn) -> LayerSpec:
    groups = draw(st.integers(1, 3))
    inner, outer = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["conv", "linear", "transposed", "embedding"]))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3))) if kind in ("conv", "transposed") else (1, 1)
    name = draw(st.text(st.characters(codec="utf-8"), min_size=1))
    return LayerSpec(name, kind, inner, outer, kernel, (1, 1), (1, 1), groups, (4, 4), (4, 4), "b", name)


@st.composite
def tables(draw: st.DrawFn) -> LayerTable:
    specs = [layers_of(draw) for _ in range(draw(st.integers(1, 5)))]
    return LayerTable("m", ((3,),), tuple({spec.name: spec for spec in specs}.values()))


OTHERS = st.builds(
    Other,
    st.text(st.characters(codec="utf-8"), min_size=1),
    st.sampled_from(["F16", "F32"]),
    st.lists(st.integers(1, 4), max_size=3).map(tuple),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=tables(),
    others=st.lists(OTHERS, max_size=3, unique_by=lambda other: other.name),
    inputs=st.booleans(),
    data=st.data(),
)
def test_any_header_is_as_long_as_predicted_and_read_back(
    table: LayerTable, others: list[Other], inputs: bool, data: st.DataObject, tmp_path: Path
) -> None:
    bits = st.sampled_from(WEIGHT_BITS)
    a = bits | st.just(32) if inputs else st.just(32)
    config = BitConfig(table.names, tuple(Precision(data.draw(bits), data.draw(a)) for _ in table))
    layout = PackedLayout("net.py:make", "[[],{}]", table, tuple(others), inputs)
    header = layout.header(config, layout.padding(config))
    header += b" " * (-len(header) % 8)
    assert len(header) + 8 == layout.header_bytes()
    entries = layout.entries(config)
    content = bytes(max(end for _, end in (entry["data_offsets"] for entry in entries.values())))
    assert len(header) + 8 + len(content) == layout.file_bytes(config)
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole(json.loads(header), content))
    found = read_packed(path)
    assert found.entries == entries
    assert found.shapes == {layer.name: code_shape(layer) for layer in table}
    assert found.config.wbits == config.wbits
    for layer, ours, theirs in zip(table, config.precisions, found.config.precisions, strict=True):
        assert theirs.a == (ours.a if quantized_inputs(layer, ours) else 32)
