"""Run as `python -O optimized.py RUN TINY`: files that are bad are refused where assertions are left out as well.

Prints what went wrong, then how many cases there were.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
from pathlib import Path

from hostile import Place, arrays, devices, images, run_files

from mpsearch.cli.main import main


def answered(*line: object) -> tuple[object, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    sys.argv = ["mpsearch", *map(str, line)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            return end.code, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def try_all(run: Path, tiny: Path) -> int:
    """Tries every case on a copy of a run folder."""
    count = 0
    for name, call, _ in (case for kind in (run_files, devices, images, arrays) for case in kind()):
        with tempfile.TemporaryDirectory() as temporary:
            here = Path(temporary)
            (here / "here").mkdir()
            shutil.copytree(run, here / "run")
            code, out, err = answered(*call(Place(here / "here", here / "run", tiny)))
        if code != 2 or out or sum(line.startswith("mpsearch: ") for line in err.splitlines()) != 1:
            print(f"{name}: exit code {code}, {out[:80]!r}, {err[-300:]!r}")
        count += 1
    return count


if __name__ == "__main__":
    total = try_all(Path(sys.argv[1]), Path(sys.argv[2]))
    print(total, "with" if __debug__ else "without", "assertions")
