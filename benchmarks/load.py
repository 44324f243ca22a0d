"""Four runs at once in four folders, two writers for each, and ten readers of them all the while.

    python benchmarks/load.py [--readers 10] [--write]

Runs are of a network of four layers. Readers read fronts, problems and finished models as `front` does, and must find
either nothing yet or all of it. Of each folder's two writers, which start together, one must be told that the folder is
in use, and by whom. In the end the four folders hold the same bytes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from kill import QUICK, contents, make_tiny
from machine import machine

from hwmodel import InputError
from mpsearch.files.folder import RunFolder
from mpsearch.run.artifacts import finished_configs, read_problem
from mpsearch.run.summary import versions

RESULTS = Path(__file__).resolve().parent / "results" / "load.json"
NOT_YET = ("no front.json", "is missing")
LONG = ("--population", "60", "--generations", "400", "--steps", "40")  # enough that the other writer comes meanwhile


def started(tiny: Path, out: Path) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    source = ("--model", f"{tiny / 'net.py'}:net", "--data", str(tiny / "data"), "--size-budget", "1300")
    line = (sys.executable, "-m", "mpsearch", "run", *source, "--wbits", "4,8", *QUICK, *LONG, "--out", str(out))
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def reader(folders: list[Path], ended: threading.Event, seen: Counter[str], faults: list[str]) -> None:
    """Reads all folders again and again until the runs have ended."""
    while not ended.is_set():
        for path in folders:
            folder = RunFolder(path)
            try:
                read_problem(folder)
                finished_configs(folder)
                seen["whole"] += 1
            except InputError as error:
                if any(text in str(error) for text in NOT_YET):
                    seen["not yet"] += 1
                else:
                    faults.append(str(error))
            time.sleep(0.3)


def main() -> None:
    """Runs, prints what was seen and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", type=int, default=10)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/load.json")
    given = parser.parse_args()
    began, seen, faults = time.perf_counter(), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory(prefix="mpsearch-load-") as temporary:
        root = Path(temporary)
        make_tiny(root / "tiny")
        folders = [root / str(number) / "run" for number in range(4)]  # pages have the folder's name as their title
        ended = threading.Event()
        threads = [threading.Thread(target=reader, args=(folders, ended, seen, faults)) for _ in range(given.readers)]
        for thread in threads:
            thread.start()
        writers = [started(root / "tiny", folder) for folder in folders for _ in range(2)]
        ends = [(writer.communicate()[1], writer.returncode) for writer in writers]
        refused = sum(code == 2 and "is in use by process" in said for said, code in ends)
        ended.set()
        for thread in threads:
            thread.join()
        found = [contents(folder) for folder in folders]
        same = all(one == found[0] for one in found)
    data = {
        "runs_ended_well": sum(code == 0 for _, code in ends),
        "second_writers_refused": refused,
        "same_bytes": same,
        "readers": given.readers,
        "reads": dict(seen),
        "faults": faults[:10],
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(data, indent=1))
    if given.write:
        RESULTS.write_text(json.dumps({"machine": machine(), "versions": versions(), **data}, indent=1) + "\n")


if __name__ == "__main__":
    main()
