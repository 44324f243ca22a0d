"""A run folder whose files somebody cut off, replaced or edited: looking at it gives an answer or one line."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commandline import Command
from mutations import edited, flipped, garbage, truncated

from hwmodel import InputError
from hwmodel.json_text import parse_json
from mpsearch.export.bits import export
from mpsearch.files.folder import RunFolder
from mpsearch.optimization.baselines import answers
from mpsearch.request.options import RunOptions
from mpsearch.run.artifacts import (
    finished_configs,
    read_config,
    read_configs,
    read_costs,
    read_front,
    read_layers,
    read_origin,
    read_problem,
    read_sensitivity,
)
from mpsearch.run.page import read_explored
from mpsearch.show import tables
from mpsearch.show.compare import compare
from mpsearch.show.console import results
from mpsearch.show.explorer import page
from mpsearch.show.why import explain
from mpsearch.tasks.figure import finished_text

FILES = (
    "front.json", "costs.json", "layers.json", "chosen/budget.json", "config.toml", "sensitivity.safetensors",
)  # fmt: skip
FEW = 12  # changes in the fast tests


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder; tests change it and put it right again."""
    import subprocess
    import sys

    out = tmp_path_factory.mktemp("whole") / "out"
    quick = ("--steps", "1", "--population", "8", "--generations", "2", "--samples", "32")
    model, data = f"{tiny / 'net.py'}:net", str(tiny / "data")
    given = ("--model", model, "--data", data, "--size-budget", "5200", "--out", str(out))
    subprocess.run([sys.executable, "-m", "mpsearch", "run", *given, *quick], check=True, capture_output=True)
    return out


def looks(folder: RunFolder, everything: bool = True) -> Iterator[Callable[[], object]]:
    """What `front`, `why`, `compare`, `export`, `explore` and a resumed step read, and make of it."""
    out = results(io.StringIO())

    def front() -> None:
        found = read_front(folder)
        finished = [entry for _, entry in finished_configs(folder)]
        out.print(tables.front_rows(found, found.thin(8), finished, answers(read_problem(folder))))

    def why() -> None:
        name, bits = read_config(folder, "budget")
        costs, allowed = read_costs(folder)
        explained = explain(name, bits, read_layers(folder), costs, read_sensitivity(folder), allowed, 10)
        for part in tables.why_rows(explained):
            out.print(part, markup=False)

    def compared() -> None:
        run = ("a", read_layers(folder).model, read_front(folder), finished_configs(folder))
        for part in tables.comparison_rows(compare([run, run])):
            out.print(part, markup=False)

    def exported() -> None:
        finished = finished_configs(folder)
        for _, record in finished:
            f"{record['size_bytes']:,} {finished_text(record)}"
        export(read_layers(folder), read_configs(finished), "csv")

    def resumed() -> None:
        RunOptions.from_toml(folder.file("config.toml"))
        read_origin(folder)

    def explored() -> None:
        page([read_explored(folder, "a")])

    yield from (front, why, compared, exported, resumed)
    if everything:
        yield explored


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("count", [FEW, pytest.param(400, marks=pytest.mark.slow)])
def test_every_damage_is_one_line_or_none(whole: Path, tmp_path: Path, name: str, count: int) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(whole, folder.path)
    data = (whole / name).read_bytes()
    changes = [*truncated(data), *garbage(), *flipped(data, count, count)]
    changes += edited(data.decode(), count, count) if name.endswith(".json") else []
    said: list[str] = []
    for what, changed in changes:
        folder.file(name).write_bytes(changed)
        for look in looks(folder, count > FEW):
            try:
                look()
            except InputError as error:
                said.append(str(error))
            except Exception as error:
                raise AssertionError(f"{name}, {what}: {type(error).__name__}: {error}") from error
    assert len(said) > 20
    assert [line for line in said if "\n" in line] == []


def test_a_front_over_a_cost_that_there_is_not(whole: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(whole, folder.path)
    text = folder.file("front.json").read_text()
    folder.file("front.json").write_text(text.replace('"size_bytes"', '"size_Tytes"'))
    with pytest.raises(InputError, match="there is no cost 'size_Tytes'"):
        read_front(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(whole: Path, tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(whole, folder.path)
    folder.file(name).unlink()
    said = []
    for look in looks(folder):
        try:
            look()
        except InputError as error:
            said.append(str(error))
    assert (
        said
        if name != "chosen/budget.json"
        else said == ["no configuration is finished here: run `mpsearch finalize RUN` first"]
    )
    assert all(str(folder.path) in line or "finalize" in line for line in said)


def test_names_with_control_characters_reach_no_terminal(whole: Path, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "a\nb\x1b[31m‮"
    result = command("front", folder)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "\x1b" not in result.err
    assert "‮" not in result.err
    assert "a\\nb\\x1b[31m\\u202e" in result.err


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", "-Infinity", "1e999", "1" * 50, "[" * 10**5, "", "{", "\ud800", '{"a": 1,}']
)
def test_json_beyond_the_standard_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_json_reads_what_it_should() -> None:
    assert parse_json('{"a": [1, -2.5, 1e300, null, true, "x"], "b": 170141183460469231731687303715884105727}') == {
        "a": [1, -2.5, 1e300, None, True, "x"],
        "b": 2**127 - 1,
    }
    assert str(parse_json("[NaN, Infinity]", not_finite=True)) == "[nan, inf]"
