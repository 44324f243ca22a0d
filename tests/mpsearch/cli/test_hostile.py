"""Every bad input of the table: exit code 2, one line on stderr, nothing on stdout, nothing written, no code run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import Command
from hostile import CASES, Place


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder."""
    out = tmp_path_factory.mktemp("hostile") / "run"
    quick = ("--steps", "1", "--population", "8", "--generations", "2", "--samples", "32")
    given = ("--model", f"{tiny / 'net.py'}:net", "--data", str(tiny / "data"), "--size-budget", "5200")
    line = [sys.executable, "-m", "mpsearch", "run", *given, "--out", str(out), *quick]
    subprocess.run(line, check=True, capture_output=True)
    return out


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_the_table_is_long() -> None:
    names = [name for name, *_ in CASES]
    assert len(set(names)) == len(names) >= 200


@pytest.mark.parametrize(
    ("name", "call", "part"),
    [pytest.param(*case, id=case[0], marks=[pytest.mark.slow] * (number % 6 > 0)) for number, case in enumerate(CASES)],
)
def test_a_bad_input_is_one_line(
    name: str, call: object, part: str, run: Path, tiny: Path, tmp_path: Path, command: Command
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    shutil.copytree(run, tmp_path / "run")
    place = Place(here, tmp_path / "run", tiny)
    line = call(place)  # type: ignore[operator]
    before = files(tmp_path)
    result = command(*line)
    assert result.code == 2, (result.code, result.err)
    assert result.out == ""
    said = [text for text in result.err.splitlines() if text.startswith("mpsearch: ")]
    assert len(said) == 1, result.err
    assert result.err.rstrip("\n").endswith(said[0])
    assert "Traceback" not in result.err
    assert part in said[0], said[0]
    assert 20 < len(said[0]) < 1200
    assert files(tmp_path) == before


@pytest.mark.slow
def test_bad_files_are_refused_without_assertions_too(run: Path, tiny: Path) -> None:
    line = [sys.executable, "-O", Path(__file__).with_name("optimized.py"), run, tiny]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (said,) = done.stdout.splitlines()  # nothing but how many there were
    count, end = said.split(maxsplit=1)
    assert int(count) > 150
    assert end == "without assertions"
