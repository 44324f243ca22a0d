"""Whatever text or bytes come: records come back as they were, and everything else is an InputError in one line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hwmodel import BitConfig, InputError, Precision
from hwmodel.device import parse_device
from hwmodel.json_text import parse_json
from mpsearch.export.header import read_packed
from mpsearch.export.packed import fill_packed, save_packed
from mpsearch.optimization.front import ParetoFront
from mpsearch.request.options import RunOptions
from mpsearch.request.parse import parse_abits, parse_bits, parse_shape
from mpsearch.request.rules import parse_rule, parse_tie
from mpsearch.request.units import parse_duration, parse_energy, parse_mean_bits, parse_operations, parse_size
from recon.graph.network import Network, capture
from recon.quantizers.quantized import plainly_rounded

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**127), 2**127)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(), part, max_size=4),
    max_leaves=12,
)


def answers(call: Callable[[], Any]) -> Any:
    """What a call gives, or None where it refuses in one line; anything else that it raises is a fault."""
    try:
        return call()
    except InputError as error:
        line = str(error)
    assert "\n" not in line
    assert line
    return None


@FEW
@given(JSON)
def test_json_comes_back(data: Any) -> None:
    assert parse_json(json.dumps(data)) == data


@FEW
@given(st.text() | st.from_regex(r"-?[0-9]{0,40}\.?[0-9]{0,3} ?[a-zA-Zµ]{0,4}", fullmatch=True))
@pytest.mark.parametrize(
    "parse", [parse_size, parse_duration, parse_energy, parse_mean_bits, parse_operations], ids=lambda f: f.__name__
)
def test_budgets_are_positive_or_refused(parse: Callable[[str], float], text: str) -> None:
    found = answers(lambda: parse(text))
    assert found is None or 0 < found < float("inf")


@FEW
@given(st.text() | st.text("0123456789,x=!WA.", max_size=12))
@pytest.mark.parametrize(
    "parse", [parse_bits, parse_abits, parse_shape, parse_rule, parse_tie, Precision.parse], ids=lambda f: f.__name__
)
def test_other_options_are_read_or_refused(parse: Callable[[str], Any], text: str) -> None:
    answers(lambda: parse(text))


BITS = st.lists(st.sampled_from([2, 3, 4, 5, 6, 8]), min_size=1, max_size=4, unique=True)


@FEW
@given(
    st.builds(
        RunOptions,
        model=st.text("abcxyz:_", min_size=1),
        data=st.none() | st.text("abcxyz", min_size=1),
        size_budget_bytes=st.integers(1, 2**50),
        mean_bits_budget=st.none() | st.floats(0.1, 32),
        wbits=BITS.map(tuple),
        seed=st.integers(0, 2**31),
        samples=st.integers(1, 10**6),
        population=st.integers(8, 1000),
        symmetric=st.booleans(),
        edges=st.sampled_from(["8", "free", "auto"]),
    )
)
def test_options_come_back(options: RunOptions) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(options.to_toml().encode())
        assert RunOptions.from_toml(path) == options


@FEW
@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_file_of_options_is_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(data)
        answers(lambda: RunOptions.from_toml(path))


@FEW
@given(st.dictionaries(st.text(min_size=1), st.builds(Precision, st.integers(2, 8), st.sampled_from([4, 8, 32]))))
def test_bit_assignments_come_back(bits: dict[str, Precision]) -> None:
    config = BitConfig(tuple(bits), tuple(bits.values()))
    assert BitConfig.from_json(json.loads(config.dumps())) == config


@FEW
@given(JSON)
def test_any_json_is_a_front_or_refused(data: Any) -> None:
    answers(lambda: ParetoFront.from_json(json.dumps(data)))


@FEW
@given(st.text() | st.dictionaries(st.text(), st.integers()).map(json.dumps))
def test_any_text_is_a_device_or_refused(text: str) -> None:
    answers(lambda: parse_device(text, "device"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, bytes, Path]:
    """A packed file of two layers, its network, and a place to put changed ones."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    network = capture(net, torch.rand(3, 2, 4, 4))
    config = BitConfig.uniform(network.table.names, Precision(3))
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    save_packed(path, network, "net", plainly_rounded(network, (torch.rand(16, 2, 4, 4),), config))
    return network, path.read_bytes(), path


@settings(FEW, max_examples=150)
@given(st.data())
def test_a_changed_packed_file_is_refused(packed: tuple[Network, bytes, Path], data: st.DataObject) -> None:
    network, whole, path = packed
    kind = data.draw(st.sampled_from(["cut", "longer", "bytes", "digits"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if kind == "cut":
        changed = whole[:at]
    elif kind == "longer":
        changed = whole + data.draw(st.binary(min_size=1, max_size=20))
    elif kind == "digits":  # shapes, offsets and bits in the header
        digits = [place for place in range(8, 900) if whole[place : place + 1].isdigit()]
        place = digits[at % len(digits)]
        changed = whole[:place] + data.draw(st.sampled_from(list("0123456789"))).encode() + whole[place + 1 :]
    else:
        new = data.draw(st.binary(min_size=1, max_size=8))
        changed = whole[:at] + new + whole[at + len(new) :]
    path.write_bytes(changed)
    found = answers(lambda: fill_packed(path, network))
    path.write_bytes(whole)
    assert found is None or answers(lambda: read_packed(path)) is not None
    if found is not None:  # only what the digest leaves out, the padding, may differ
        again = fill_packed(path, network)
        x = torch.rand(2, 2, 4, 4)
        assert torch.equal(found.model(x), again.model(x))
