"""Run folders that have moved: with the project, without it, and looked at from elsewhere."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from commandline import Command, refused

QUICK = ("--steps", 2, "--population", 16, "--generations", 3, "--samples", 32)


@pytest.fixture
def project(tiny: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a finished run, made in its folder by relative paths, files for the group alone."""
    folder = tmp_path / "project"
    shutil.copytree(tiny, folder)
    monkeypatch.chdir(folder)
    before = os.umask(0o027)
    try:
        done = command(
            "run", "--model", "net.py:net", "--weights", "net.pt", "--data", "data", "--size-budget", 5_200,
            "--out", "runs/mine", *QUICK,
        )  # fmt: skip
    finally:
        os.umask(before)
    assert done.code == 0, done.err
    return folder


def goes_on(command: Command, run: Path) -> None:
    """The model and the images are found again, and what is there is current."""
    done = command("finalize", run, "--pick", "knee")
    assert done.code == 0, done.err
    assert done.out.startswith("knee: ")
    for step in ("sensitivity: cache is current", "search: front is current"):
        assert step in done.err


def test_files_are_the_groups_as_the_umask_says(project: Path) -> None:
    for path in (project / "runs" / "mine").rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o640, path


def test_the_project_moves(project: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    there = project.with_name("moved")
    monkeypatch.chdir(project.parent)
    project.rename(there)
    assert str(project) not in (there / "runs" / "mine" / "config.toml").read_text().partition("folder")[0]
    goes_on(command, there / "runs" / "mine")
    with (there / "net.py").open("a") as code:
        code.write("\n# a comment makes no other weights\n")
    done = command("search", there / "runs" / "mine")
    assert done.code == 0, done.err


def test_the_run_moves_alone(project: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    there = project.parent / "elsewhere" / "mine"
    there.parent.mkdir()
    monkeypatch.chdir(there.parent)
    (project / "runs" / "mine").rename(there)
    goes_on(command, there)


def test_without_the_project_it_can_be_looked_at(project: Path, command: Command) -> None:
    run = project / "runs" / "mine"
    for name in ("net.py", "net.pt", "data"):
        (project / name).rename(project / f"gone-{name}")
    for looked in (("front", run), ("why", run, "budget"), ("export", run)):
        assert command(*looked).code == 0
    refused(command("finalize", run, "--pick", "knee"), "net.pt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_not_called_damaged(project: Path, command: Command) -> None:
    run = project / "runs" / "mine"
    for name in ("front.json", "sensitivity.safetensors", "layers.json"):
        (run / name).chmod(0)
        result = command("why", run, "budget")
        refused(result, name, "ermission")
        assert "damaged" not in result.err
        (run / name).chmod(0o640)
