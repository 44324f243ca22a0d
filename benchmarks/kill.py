"""Ends commands at every write in turn and at random moments, starts them again, and compares every byte.

    python benchmarks/kill.py [--fault kill] [--trials 500] [--only run,search] [--seed 0] [--write | --add]

Each trial copies a prepared folder, starts a command in a process of its own, kills it there as `kill -9` does, starts
the same command again and lets it end. Instead of being killed it may find the disk full, read-only, beyond a quota or
broken from some write on, or slow, or its folder gone: then it must end with exit code 2 and one line. What is in the
folder then must be what an undisturbed command leaves, byte for byte but for seconds, peak
memory and what a profile measures, and nothing beside it. Processes are forked from one that has everything loaded, so
that a trial takes a second and not ten.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from faults import Faults, killed, refused, slow
from machine import machine

from mpsearch.run.summary import versions

RESULTS = Path(__file__).resolve().parent / "results"
QUICK = ("--steps", "3", "--population", "8", "--generations", "3", "--samples", "32", "--seed", "0")
NET = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2], model[4], model[7]):
            layer.weight *= 4
    return model
"""
TIMES = re.compile(rb'("seconds[a-z_]*"|"peak_rss_bytes"): (\{[^}]*\}|[0-9.e-]+)')
MEASURED = ("lookup.json",)  # by the clock: what must be the same is what was measured, not how long it took


@dataclass(frozen=True, slots=True)
class Scenario:
    """A command line, with `{out}` and `{tiny}`, and those that prepare its folder."""

    name: str
    command: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()


FAULTS: dict[str, int] = {
    "full": errno.ENOSPC, "quota": errno.EDQUOT, "readonly": errno.EROFS, "broken": errno.EIO,
}  # fmt: skip
KINDS = ("kill", *FAULTS, "removed", "slow")


@dataclass(slots=True)
class Tally:
    """What came of the trials of one scenario; `missed` ended before the fault came."""

    name: str
    writes: int = 0
    at_writes: int = 0
    at_random: int = 0
    missed: int = 0
    differences: list[str] = field(default_factory=list)


def scenarios() -> tuple[Scenario, ...]:
    """The commands that write."""
    source = ("--model", "{tiny}/net.py:net", "--data", "{tiny}/data")
    made = ("--out", "{out}/run", "--size-budget", "1300", "--wbits", "4,8", *QUICK)
    search = ("search", "{out}/run")
    sensitivity = ("sensitivity", *source, *made)
    wider = ("sensitivity", *source, *_with(made, "--wbits", "3,4,8"))
    more = ("sensitivity", *source, *_with(made, "--samples", "48"))
    return (
        Scenario("run", ("run", *source, *made)),
        Scenario("sensitivity by a width", wider, (sensitivity,)),
        Scenario("sensitivity by images", more, (sensitivity,)),
        Scenario("search", search, (sensitivity,)),
        Scenario("finalize", ("finalize", "{out}/run", "--pick", "all:4"), (sensitivity, search)),
        Scenario("reconstruct", ("reconstruct", *source, "--bits", "W4", "--out", "{out}/run", *QUICK[:2], *QUICK[6:])),
        Scenario("profile", ("profile", *source, "--out", "{out}/lookup.json", "--rounds", "2")),
        Scenario("export", ("export", "{out}/run", "--out", "{out}/bits.json"), (("run", *source, *made),)),
    )


def _with(options: tuple[str, ...], name: str, value: str) -> tuple[str, ...]:
    at = options.index(name)
    return (*options[: at + 1], value, *options[at + 2 :])


def make_tiny(folder: Path) -> None:
    """A network of four layers and its images."""
    folder.mkdir(parents=True)
    (folder / "net.py").write_text(NET)
    (folder / "net.json").write_text('{"input_size": [3, 10, 10], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}')
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("calib", 64), ("val", 40)):
        x, y = rng.integers(0, 256, (count, 10, 10, 3), np.uint8), rng.integers(0, 5, count)
        np.savez(folder / "data" / f"{name}.npz", x=x, y=y)


def call(command: tuple[str, ...], tiny: Path, out: Path, inside: Callable[[], Any] | None = None) -> tuple[int, bytes]:
    """Runs a command in a forked process; its wait status, and what it said on stderr. `inside` runs there first."""
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                os.dup2(said.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                if inside is not None:
                    inside()
                code = in_process(command, tiny, out)
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        said.seek(0)
        return status, said.read()


def in_process(command: tuple[str, ...], tiny: Path, out: Path) -> int:
    """Runs a command in this process; its exit code."""
    from mpsearch.cli.main import main

    sys.argv = ["mpsearch", *(part.format(tiny=tiny, out=out) for part in command)]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def contents(folder: Path) -> dict[str, Any]:
    """Every file below a folder by its path, what the clock says taken out."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            continue
        data = path.read_bytes()
        if path.name in MEASURED:
            rows = json.loads(data)["rows"]
            found[name] = sorted(str({k: v for k, v in row.items() if k not in ("seconds", "spread")}) for row in rows)
        elif path.suffix in (".html", ".toml"):  # which say where the folder is
            found[name] = data.replace(str(folder).encode(), b"")
        elif path.name == "report.txt":
            found[name] = [line for line in data.splitlines() if not line.startswith((b"seconds", b"peak memory"))]
        else:
            found[name] = TIMES.sub(rb"\1", data) if path.suffix == ".json" else data
    return found


def prepared(scenario: Scenario, tiny: Path, root: Path) -> tuple[Path, dict[str, Any], int, float]:
    """A folder as it is before the command, what is in it after it, the writes it takes, and its seconds."""
    start = root / "start"
    start.mkdir(parents=True)
    for command in scenario.before:
        status, said = call(command, tiny, start)
        assert status == 0, said.decode()
    whole, counts = root / "whole", root / "counts"
    shutil.copytree(start, whole)
    began = time.perf_counter()

    def counting() -> None:
        faults = Faults(at=0).__enter__()
        real = os._exit
        os._exit = lambda code: (counts.write_text(str(faults.count)), real(code))  # type: ignore[assignment]

    status, said = call(scenario.command, tiny, whole, counting)
    assert status == 0, said.decode()
    return start, contents(whole), int(counts.read_text()), time.perf_counter() - began


def fault(kind: str, at: int, after: float, out: Path) -> Callable[[], Any]:
    """What a process does to itself before it begins: the fault at the `at`-th write, or a kill `after` seconds."""
    if not at:

        def alarm() -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends a process wherever it is
            signal.setitimer(signal.ITIMER_REAL, after)

        return alarm

    def gone(name: str) -> None:
        os.rename(out, out.with_name("elsewhere"))

    acts = {"kill": killed, "removed": gone, "slow": slow(0.02)}
    act = acts[kind] if kind in acts else refused(FAULTS[kind])
    return lambda: Faults(at, act, lasting=kind in FAULTS or kind == "slow").__enter__()


def wrong_end(kind: str, status: int, said: bytes) -> str:
    """What is not as it should be with the end of a command that met a fault other than a kill."""
    lines = [line for line in said.decode().splitlines() if line.startswith("mpsearch: ")]
    code = os.waitstatus_to_exitcode(status)
    right = {0: 0, 2: 1}.get(code) if kind != "slow" else {0: 0}.get(code)
    if right is None or len(lines) != right or b"Traceback" in said:
        return f"it ended with {code}: {said.decode()[-300:]}"
    return ""


def trial(
    scenario: Scenario, kind: str, at: int, after: float, tiny: Path, start: Path, expected: dict[str, Any]
) -> tuple[bool, str]:
    """One fault and one start again. Whether the fault came in time, and what is wrong, empty where nothing is."""
    root = start.parent
    shutil.rmtree(root / "elsewhere", ignore_errors=True)
    out = root / "trial"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(start, out)
    status, said = call(scenario.command, tiny, out, fault(kind, at, after, out))
    came = os.WIFSIGNALED(status) if kind == "kill" else os.waitstatus_to_exitcode(status) == 2
    if kind != "kill" and (wrong := wrong_end(kind, status, said)):
        return came, wrong
    if kind == "removed":
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(root / "elsewhere", out)
    status, said = call(scenario.command, tiny, out)
    if status != 0:
        return came, f"the second start ended with {status}: {said.decode()[-300:]}"
    found = contents(out)
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return came, ", ".join(names)


def try_all(
    kind: str, trials: int, only: set[str], seed: int, tiny: Path, work: Path, report: Callable[[str], None]
) -> list[Tally]:
    """`trials` over the scenarios: at every write of each, and for kills what is left at random moments."""
    draw = random.Random(seed)
    chosen = [one for one in scenarios() if not only or one.name in only]
    ready = {}
    for scenario in chosen:
        ready[scenario.name] = prepared(scenario, tiny, work / scenario.name.replace(" ", "-"))
        report(f"{scenario.name}: {ready[scenario.name][2]} writes, {ready[scenario.name][3]:.1f} s undisturbed")
    tallies = {one.name: Tally(one.name, ready[one.name][2]) for one in chosen}
    plan: list[tuple[Scenario, int]] = [(one, at) for one in chosen for at in range(1, ready[one.name][2] + 1)]
    if len(plan) > trials:
        plan = draw.sample(plan, trials)
    if kind == "kill":
        plan += [(draw.choice(chosen), 0) for _ in range(trials - len(plan))]
    for number, (scenario, at) in enumerate(plan, 1):
        start, expected, _, seconds = ready[scenario.name]
        after = draw.uniform(0.01, seconds)

        came, differs = trial(scenario, kind, at, after, tiny, start, expected)
        tally = tallies[scenario.name]
        if not came:
            tally.missed += 1
        elif at:
            tally.at_writes += 1
        else:
            tally.at_random += 1
        if differs:
            tally.differences.append(f"{'write ' + str(at) if at else f'after {after:.3f} s'}: {differs}")
            report(f"{scenario.name}: {tally.differences[-1]}")
        if number % 25 == 0:
            report(f"{number} of {len(plan)}")
    return list(tallies.values())


def main() -> None:
    """Kills, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fault", choices=KINDS, default="kill")
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/kill.json, or full.json, …")
    parser.add_argument("--add", action="store_true", help="add to what is there, trials of another seed")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mpsearch-kill-"))
    began = time.perf_counter()
    try:
        make_tiny(work / "tiny")
        # Loaded once, so that forked processes need not; no gradient, after which torch lets no fork compute one.
        for name in ("run.steps", "run.finalize", "run.picture", "hardware.profile", "cli.commands"):
            import_module(f"mpsearch.{name}")
        torch.export.export(torch.nn.Linear(2, 2).eval(), (torch.zeros(3, 2),), strict=False)
        only = {name for name in given.only.split(",") if name}
        tallies = try_all(
            given.fault, given.trials, only, given.seed, work / "tiny", work, lambda line: print(line, flush=True)
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{'command':<24}{'writes':>8}{'met at one':>15}{'at random':>11}{'missed':>14}{'differences':>13}")
    for one in tallies:
        row = f"{one.name:<24}{one.writes:>8}{one.at_writes:>15}{one.at_random:>11}{one.missed:>14}"
        print(f"{row}{len(one.differences):>13}")
    total = Counter[str]()
    for one in tallies:
        total.update(faults=one.at_writes + one.at_random, differences=len(one.differences))
    print(
        f"{total['faults']} times {given.fault}, {total['differences']} differences, "
        f"{time.perf_counter() - began:.0f} s"
    )
    path, seconds = RESULTS / f"{given.fault}.json", time.perf_counter() - began
    if given.add:
        kept = json.loads(path.read_text())
        seconds += kept["seconds"]
        tallies = [_added(Tally(**one), tallies) for one in kept["scenarios"]]
    if given.write or given.add:
        data = {
            "machine": machine(),
            "versions": versions(),
            "seed": given.seed,
            "seconds": round(seconds, 1),
            "fault": given.fault,
            "faults": sum(one.at_writes + one.at_random for one in tallies),
            "differences": sum(len(one.differences) for one in tallies),
            "scenarios": [asdict(one) for one in tallies],
        }
        path.write_text(json.dumps(data, indent=1) + "\n")


def _added(kept: Tally, more: list[Tally]) -> Tally:
    """The trials of a scenario that were recorded, and those of now."""
    for one in more:
        if one.name == kept.name:
            kept.writes = one.writes
            kept.at_writes += one.at_writes
            kept.at_random += one.at_random
            kept.missed += one.missed
            kept.differences += one.differences
    return kept


if __name__ == "__main__":
    main()
