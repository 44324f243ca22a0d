"""A run in odd surroundings leaves the same bytes as in plain ones."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from commandline import Command

from hwmodel.files import write_whole
from mpsearch.run import keys

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
# The clock goes back a day or forth an hour with every look at it.
JUMPING = """
import itertools, time
real, steps = time.time, itertools.cycle((0, -86_400, 3_600))
time.time = lambda: real() + next(steps)
"""
# HOME and the current folder cannot be written to, though the user is root.
READ_ONLY = 'mount --bind {it} {it} && mount -o remount,bind,ro {it} && cd {it} && HOME={it} exec "$@"'


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark that has a small network, and compares folders."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("kill")


def mounts() -> bool:
    """Whether a process here may have mounts of its own."""
    tried = ["unshare", "-m", "sh", "-c", "mount --bind /tmp /tmp"]
    return shutil.which("unshare") is not None and subprocess.run(tried, capture_output=True).returncode == 0


@pytest.mark.slow
def test_the_same_bytes_in_all_surroundings(kill: Any, tmp_path: Path) -> None:
    tiny = tmp_path / "tiny"
    kill.make_tiny(tiny)
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(JUMPING)
    (tmp_path / "locked").mkdir()

    def ran(
        name: str, *python: str, out: str | None = None, before: Sequence[str] = (), cwd: Path = tmp_path, **more: str
    ) -> dict[str, Any]:
        folder = tmp_path / name / "run"
        source = ("--model", f"{tiny}/net.py:net", "--data", str(tiny / "data"), "--size-budget", "1300")
        line = (*before, sys.executable, *python, "-m", "mpsearch", "run", *source, "--wbits", "4,8", *kill.QUICK)
        done = subprocess.run(
            [*line, "--out", out or str(folder)], env=os.environ | more, cwd=cwd, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
        found: dict[str, Any] = kill.contents(folder)
        if out is not None:  # the page names the folder as the user did
            found["front.html"] = found["front.html"].replace(out.encode(), b"")
        return found

    plain = ran("plain", PYTHONHASHSEED="1")
    path = os.pathsep.join(filter(None, (str(tmp_path / "clock"), os.environ.get("PYTHONPATH"))))
    others = {
        "hash": ran("hash", PYTHONHASHSEED="2"),
        "optimized": ran("optimized", "-O"),
        "clock": ran("clock-run", PYTHONPATH=path),
        "relative": ran("relative", out="../relative/run", cwd=tmp_path / "locked"),
    }
    if mounts():
        inside = ("unshare", "-m", "sh", "-c", READ_ONLY.format(it=tmp_path / "locked"), "sh")
        others["read-only"] = ran("read-only", before=inside, TMPDIR=str(tmp_path))
        assert list((tmp_path / "locked").iterdir()) == []
    for name, found in others.items():
        assert [file for file in {**plain, **found} if plain.get(file) != found.get(file)] == [], name


@pytest.mark.skipif(not mounts(), reason="no mounts of one's own are allowed here")
def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    write_whole(tmp_path / "kept", b"kept")
    line = ("unshare", "-m", "sh", "-c", READ_ONLY.format(it=tmp_path), "sh", sys.executable, "-m", "mpsearch")
    for out in ((), ("--out", str(tmp_path / "out"))):
        done = subprocess.run([*line, "run", "--size-budget", "1MB", *out], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        (said,) = done.stderr.splitlines()
        assert "cannot be written to" in said or "Read-only file system" in said
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.slow
def test_two_versions_take_turns_on_a_folder(
    tiny: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ("--steps", 2, "--population", 8, "--generations", 2, "--samples", 32, "--out", tmp_path / "run")
    line = ("run", "--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data", "--size-budget", 5200, *quick)

    def made() -> tuple[str, dict[str, bytes]]:
        done = command(*line)
        assert done.code == 0, done.err
        names = ("sensitivity.safetensors", "front.json", "model-budget.safetensors", "chosen/budget.json")
        return done.err, {name: (tmp_path / "run" / name).read_bytes() for name in names}

    _, first = made()
    monkeypatch.setattr(keys, "version", lambda package: "99.0")
    said, other = made()
    assert "of another version of mpsearch: what is new is measured" in said
    assert other["sensitivity.safetensors"] != first["sensitivity.safetensors"]  # its key says who made it
    assert other["model-budget.safetensors"] == first["model-budget.safetensors"]
    monkeypatch.undo()
    said, again = made()
    assert "of another version of mpsearch: what is new is measured" in said
    assert again["sensitivity.safetensors"] == first["sensitivity.safetensors"]
    assert again["front.json"] == first["front.json"]
