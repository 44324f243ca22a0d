"""The site's pages: built without a warning, every command on them with examples that hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from mpsearch.cli.examples import EXAMPLES
from mpsearch.cli.main import application

ROOT = Path(__file__).resolve().parent.parent


def commands() -> dict[str, Any]:
    whole: Any = typer.main.get_command(application())
    found: dict[str, Any] = whole.commands
    return found


def test_every_command_ends_with_examples() -> None:
    assert set(EXAMPLES) == set(commands())
    for name, command in commands().items():
        assert command.epilog.count(f"mpsearch {name}") == len(EXAMPLES[name]) > 0


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_is_a_command_line(line: str) -> None:
    _, name, *rest = line.split()
    commands()[name].make_context(name, rest)  # raises where an option or a value is wrong


def test_the_shell_completes() -> None:
    code = "import sys; sys.argv = ['mpsearch']; from mpsearch.cli.main import main; main()"
    words = {"_MPSEARCH_COMPLETE": "complete_bash", "COMP_WORDS": "mpsearch run --size-b", "COMP_CWORD": "2"}

    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | words, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["--size-budget"], done.stderr


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    api, page = ((tmp_path / name / "index.html").read_text("utf-8") for name in ("api", "commands"))
    for text in ("Finds the bit-width of every layer", "BudgetError where no configuration meets"):
        assert text in api
    assert all(f"mpsearch {name}" in page for name in commands())
    assert "--size-budget" in page
