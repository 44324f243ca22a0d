"""Tables on narrow terminals, in files, and where there are few characters."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from hwmodel import LayerTable
from hwmodel.layer import LayerSpec
from mpsearch.cli import ascii as _ascii  # noqa: F401  registers the error handler
from mpsearch.show.columns import as_text, columns, every_other
from mpsearch.show.tables import layer_rows


def shown(view: object, width: int, terminal: bool = True) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=terminal, soft_wrap=True, color_system=None).print(view)
    return stream.getvalue()


def network() -> LayerTable:
    layers = [
        LayerSpec(f"features.{i}.conv", "conv", 128, 256, (3, 3), (1, 1), (1, 1), 1, (56, 56), (56, 56), "block", "")
        for i in range(3)
    ]
    return LayerTable("net", ((3, 56, 56),), tuple(layers), (("norm.weight", "a parameter " * 20),), ())


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 140])
def test_columns_go_and_numbers_are_never_cut(width: int) -> None:
    table = network()
    view, rest = layer_rows(table)
    text = shown(view, width)
    assert "…" not in text
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("features.")]
    assert len(rows) == 3
    for layer, row in zip(table, rows, strict=True):
        assert row[0] == layer.name
        numbers = {f"{layer.macs:,}", f"{layer.n_weights:,}", f"{layer.n_activations:,}"}
        assert {cell for cell in row if re.fullmatch(r"[\d,]{5,}", cell)} <= numbers
        assert f"{layer.n_weights:,}" in row
    assert max(map(len, shown(rest, width).splitlines())) <= max(width, 44)  # sentences wrap
    if width < 120:
        assert re.search(r"not shown \(needs a window \d+ wide\): tie, block", text)


def test_in_a_file_nothing_goes() -> None:
    view = layer_rows(network())[0]
    for text in (shown(view, 40, terminal=False), as_text(view)):
        assert "tie" in text.splitlines()[1] or "tie" in text.splitlines()[0]
        assert "not shown" not in text


def test_what_goes_is_what_was_said() -> None:
    view = columns("name", ">first", ">second", first_to_go=("second", "first"))
    view.add_row("x", "1,000,000", "2,000,000")
    assert "1,000,000" in shown(view, 24)
    assert "2,000,000" not in shown(view, 24)
    assert "1,000,000" not in shown(view, 12)
    assert "2,000,000" in shown(view, 40)


def test_every_other_goes_until_the_ends_are_left() -> None:
    order = list(every_other("abcdefg"))
    assert set(order) == set("abcdef")
    assert order[-1] == "a"
    assert order[:3] == ["b", "d", "f"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_with_few_characters(encoding: str) -> None:
    line = "→ … × µ Δ ≥ ½ Ж"
    plain = line.encode(encoding, "plainly").decode(encoding)
    assert plain.startswith("-> ... ")
    assert plain.endswith("?")
    command = "from mpsearch.cli.main import main; import sys; sys.argv = ['mpsearch', 'devices']; main()"
    done = subprocess.run(
        [sys.executable, "-c", command],
        env={"PYTHONIOENCODING": encoding, "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    done.stdout.decode(encoding)
    assert b"npu-int4" in done.stdout
