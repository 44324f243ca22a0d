"""Many runs and many searches in one process: memory, file handles, threads and temporary files after 10 and after all.

    python benchmarks/soak.py [--runs 200] [--searches 1000] [--write]

A run is a search and a finished model of a network of four layers through the Python face. Memory is the resident set
after garbage collection, and must not grow by more than 5 % from the tenth to the last.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "mpsearch"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import psutil
import torch
from kill import NET
from machine import machine
from rich.console import Console as RichConsole
from synthetic import problem

import mpsearch
from mpsearch.optimization.nsga2 import search
from mpsearch.optimization.settings import SearchSettings
from mpsearch.run.summary import versions

RESULTS = Path(__file__).resolve().parent / "results" / "soak.json"
FIRST = 10


def state() -> dict[str, int]:
    """What this process holds."""
    gc.collect()
    own = psutil.Process()
    return {
        "rss_bytes": own.memory_info().rss,
        "handles": own.num_fds() if hasattr(own, "num_fds") else own.num_handles(),
        "threads": threading.active_count(),
        "temporary_files": len(os.listdir(tempfile.gettempdir())),
    }


def repeated(count: int, call: Callable[[int], Any], report: Callable[[str], None]) -> dict[str, Any]:
    """Calls `count` times; what is held after ten and after all, and the seconds."""
    began = time.perf_counter()
    first = state()
    for number in range(1, count + 1):
        call(number)
        if number == FIRST:
            first = state()
        if number % 25 == 0:
            report(f"{number} of {count}, {psutil.Process().memory_info().rss / 1e6:.0f} MB")
    last = state()
    growth = last["rss_bytes"] / first["rss_bytes"] - 1
    return {
        "count": count,
        "after_10": first,
        "after_all": last,
        "growth_percent": round(100 * growth, 2),
        "seconds": round(time.perf_counter() - began, 1),
    }


def run_once(number: int) -> None:
    """One search and one finished model, with a seed of its own."""
    space: dict[str, Any] = {}
    exec(NET, space)
    x = torch.randn(48, 3, 10, 10, generator=torch.Generator().manual_seed(number))
    front = mpsearch.search(
        space["net"](), [x], "1300", seed=number, steps=2, population=8, generations=2, wbits=(4, 8)
    )
    front.finish()


def search_once(number: int) -> None:
    """One search of a problem of eight layers."""
    search(problem(8, seed=number % 7), SearchSettings(population=8, generations=4, seed=number, neighbours=1000))


def main() -> None:
    """Repeats, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--searches", type=int, default=1000)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/soak.json")
    given = parser.parse_args()
    tempfile.tempdir = tempfile.mkdtemp(prefix="soak-")  # what others leave in the system's is not ours
    quiet = RichConsole(file=io.StringIO())
    import mpsearch.face as face  # whose progress nobody reads here

    real = face.Console
    face.Console = lambda: real(log=quiet, out=quiet)  # type: ignore[assignment,misc]

    def report(line: str) -> None:
        quiet.file.seek(0)
        quiet.file.truncate(0)
        print(line, flush=True)

    found = {}
    for name, count, call in (("searches", given.searches, search_once), ("runs", given.runs, run_once)):
        if count:
            found[name] = repeated(count, call, report)
    print(
        f"{'':<10}{'count':>7}{'MB after 10':>13}{'after all':>11}{'growth':>9}{'handles':>9}{'threads':>9}{'files':>7}"
    )
    for name, one in found.items():
        first, last = one["after_10"], one["after_all"]
        changes = "".join(f"{last[what] - first[what]:>+{width}}" for what, width in (("handles", 9), ("threads", 9)))
        print(
            f"{name:<10}{one['count']:>7}{first['rss_bytes'] / 1e6:>13.1f}{last['rss_bytes'] / 1e6:>11.1f}"
            f"{one['growth_percent']:>8}%{changes}{last['temporary_files'] - first['temporary_files']:>+7}"
        )
    if given.write:
        RESULTS.write_text(json.dumps({"machine": machine(), "versions": versions(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
