"""Commands that are killed, or whose disk fails, at a write, and are started again: `benchmarks/kill.py` in short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "kill.py"
pytestmark = pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="the harness forks")


def tried(fault: str, only: str, trials: int) -> int:
    """How many times a fault came; nothing differed after any of them."""
    options = ("--fault", fault, "--only", only, "--trials", str(trials))
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(rf"(\d+) times {fault}, (\d+) differences, \d+ s", last)
    assert found is not None, last
    assert int(found[2]) == 0, done.stdout
    return int(found[1])


def test_a_search_that_is_killed_goes_on_to_the_same_bytes() -> None:
    assert tried("kill", "search,export", 6) >= 4


def test_a_search_whose_disk_is_full_goes_on_when_there_is_room() -> None:
    assert tried("full", "search,export", 5) >= 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "trials"), [("kill", 24), ("full", 12), ("readonly", 6), ("removed", 6), ("slow", 4)]
)
def test_every_command_survives_every_fault(fault: str, trials: int) -> None:
    assert tried(fault, "", trials) >= (trials // 2 if fault != "slow" else 0)
