"""`mpsearch reconstruct`: a model finished at bits that the user gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commandline import Command, refused
from safetensors import safe_open

import mpsearch
from hwmodel import BitConfig, LayerTable, Precision
from hwmodel.size import weights_only_bytes
from mpsearch.export.packed import pack
from mpsearch.request.assignment import parse_precision
from recon.quantizers.insert import quantizers_of


@pytest.fixture
def given(tiny: Path) -> tuple[object, ...]:
    model, data = f"{tiny / 'net.py'}:net", tiny / "data"
    return ("reconstruct", "--model", model, "--data", data, "--steps", 10)


def test_uniform_bits_with_eight_at_both_ends(given: tuple[object, ...], tmp_path: Path, command: Command) -> None:
    result = command(*given, "--bits", "W3A8", "--out", tmp_path, "--json")
    assert result.code == 0, result.err
    done = json.loads(result.out)
    config = BitConfig.from_json(done["config"])
    assert set(config.precisions[1:-1]) == {Precision(3, 8)}
    assert config.precisions[0] == config.precisions[-1] == Precision(8, 8)
    path = tmp_path / "model-W3A8.safetensors"
    assert done["size_bytes"] == path.stat().st_size
    assert done["metrics"]["finished"]["kl"] < done["metrics"]["plain"]["kl"]
    table = LayerTable.from_json(json.loads((tmp_path / "layers.json").read_text())["table"])
    assert done["weights_only_bytes"] == weights_only_bytes(table, config.wbits)
    exported = command("export", tmp_path)
    assert json.loads(exported.out)["W3A8"] == done["config"]


def test_one_precision_for_all_is_an_option(given: tuple[object, ...], tmp_path: Path, command: Command) -> None:
    result = command(*given, "--bits", "4", "--edges", "free", "--out", tmp_path)
    assert result.out.startswith("W4A32: ")
    done = json.loads((tmp_path / "chosen" / "W4A32.json").read_text())
    assert set(done["config"].values()) == {"W4A32"}


def test_symmetric_weights(given: tuple[object, ...], tmp_path: Path, command: Command) -> None:
    result = command(*given, "--bits", "4", "--edges", "free", "--symmetric", "--out", tmp_path)
    assert result.code == 0, result.err
    with safe_open(tmp_path / "model-W4A32.safetensors", "np") as file:
        zeros = file.get_tensor("zero_points")
    table = LayerTable.from_json(json.loads((tmp_path / "layers.json").read_text())["table"])
    middle = [pack(np.full(layer.out_channels, 2 * 8, np.uint8), 5) for layer in table]  # they count in halves
    assert np.array_equal(zeros, np.concatenate(middle))


def test_what_is_fitted_at_once_is_an_option(given: tuple[object, ...], tmp_path: Path, command: Command) -> None:
    fitted = {}
    for granularity in ("layer", "block", "stage", "network"):
        result = command(*given, "--bits", "4", "--granularity", granularity, "--out", tmp_path)  # none is taken over
        assert result.code == 0, result.err
        fitted[granularity] = result.err.count(" loss ")
    table = LayerTable.from_json(json.loads((tmp_path / "layers.json").read_text())["table"])
    assert fitted["layer"] == len(table) > fitted["block"] > fitted["stage"] > fitted["network"] == 1
    refused(command(*given, "--bits", "4", "--granularity", "half", "--out", tmp_path), "granularity", "half")


def test_bits_by_layer_come_from_a_file(
    given: tuple[object, ...], tiny: Path, tmp_path: Path, command: Command
) -> None:
    assert command(*given, "--bits", "4", "--out", tmp_path / "uniform").code == 0
    bits = json.loads((tmp_path / "uniform" / "chosen" / "W4A32.json").read_text())["config"]
    bits["2.one"] = "W2A4"
    (tmp_path / "mine.json").write_text(json.dumps(bits))
    result = command(*given, "--bits", tmp_path / "mine.json", "--out", tmp_path / "given", "--cache-memory", "1B")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "given" / "chosen" / "mine.json").read_text())["config"] == bits
    model = mpsearch.load_packed(tmp_path / "given" / "model-mine.safetensors", allow=f"{tiny / 'net.py'}:net")
    assert len(quantizers_of(model.modules())) == 1


def test_bits_of_another_tool_come_from_its_file(given: tuple[object, ...], tmp_path: Path, command: Command) -> None:
    layers = ("0", "2.one", "2.two", "3.one", "3.two", "6")
    encodings = [
        {"name": f"net.{name}.weight", "bw": bits} for bits, name in zip((8, 4, 3, 4, 2, 8), layers, strict=True)
    ]
    (tmp_path / "theirs.json").write_text(json.dumps({"version": "1.0.0", "param_encodings": encodings}))
    result = command(*given, "--bits", tmp_path / "theirs.json", "--out", tmp_path)
    assert result.code == 0, result.err
    assert "theirs.json (AIMET): layers by similar names: 6, such as net.0 for 0; inputs stay float" in result.err
    config = json.loads((tmp_path / "chosen" / "theirs.json").read_text())["config"]
    assert list(config.values()) == ["W8A32", "W4A32", "W3A32", "W4A32", "W2A32", "W8A32"]


def test_a_model_goes_to_aimet_and_its_bits_come_back(
    given: tuple[object, ...], tmp_path: Path, command: Command
) -> None:
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    assert command(*given, "--bits", "W6A8", "--edges", "free", "--out", tmp_path / "run").code == 0
    out = tmp_path / "model.onnx"
    beside = [tmp_path / f"model-{version}.encodings" for version in ("1.0.0", "2.0.0")]
    beside[1].write_text("mine")
    asked = ("export", tmp_path / "run", "--format", "aimet", "--out", out)
    refused(command(*asked), "model-2.0.0.encodings is there already", "--force")
    assert beside[1].read_text() == "mine"
    assert not out.exists()
    result = command(*asked, "--force")
    assert result.code == 0, result.err
    written = sum(path.stat().st_size for path in (out, *beside))
    assert result.out.startswith(f"{out}: {written:,} bytes")
    assert str(beside[0]) in result.err
    assert command(*given, "--bits", beside[0], "--out", tmp_path / "again").code == 0
    config = json.loads((tmp_path / "again" / "chosen" / "model-1.0.0.json").read_text())["config"]
    assert list(config.values()) == ["W6A32"] * 6


def test_memory_for_blocks_changes_nothing(given: tuple[object, ...], tmp_path: Path, command: Command) -> None:
    made = []
    for limit in ("1B", "1GiB"):
        assert command(*given, "--bits", "W4A4", "--out", tmp_path / limit, "--cache-memory", limit).code == 0
        made.append((tmp_path / limit / "model-W4A4.safetensors").read_bytes())
    assert made[0] == made[1]
    again = command(*given, "--bits", "W4A4", "--out", tmp_path / "1B", "--cache-memory", "2GiB")
    assert "model-W4A4.safetensors is current" in again.err


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--bits", "1"), ("--bits takes 4, W4, W4A8", "got 1")),
        (("--bits", "four"), ("--bits takes 4, W4, W4A8", "'four'")),
        (("--bits", "missing.json"), ("no such file of bits", "missing.json")),
        (("--bits", "4", "--cache-memory", "much"), ("a size looks like", "'much'")),
        (("--bits", "4", "--edges", "9"), ("--edges", "'9'")),
        (("--bits", "4", "--steps", "-1"), ("--steps must be at least 0", "-1")),
        (("--bits", "4", "--granularity", "blok"), ("granularity must be one of layer, block", "'blok'")),
        ((), ("--bits",)),
    ],
    ids=str,
)
def test_wrong_bits(
    given: tuple[object, ...], tmp_path: Path, command: Command, options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    refused(command(*given, *options, "--out", tmp_path / "out"), *parts)
    assert not (tmp_path / "out" / "layers.json").exists()


def test_bits_for_all_layers() -> None:
    assert parse_precision("W4") == parse_precision("4") == Precision(4)
    assert parse_precision("W4A8") == Precision(4, 8)


def test_bits_of_another_network(given: tuple[object, ...], tmp_path: Path, command: Command) -> None:
    other, out = tmp_path / "other.json", tmp_path / "out"
    other.write_text('{"conv1": "W4A32"}')
    refused(
        command(*given, "--bits", other, "--out", out),
        "another network",
        "names 0 of 6 layers",
        "'conv1' in it is left",
    )
    assert not (out / "layers.json").exists()
