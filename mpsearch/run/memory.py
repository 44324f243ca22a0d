"""How much memory this process has had at its peak, and how much more there is for it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


def peak_rss_bytes() -> int:
    """The largest resident set of this process so far, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")  # Linux: getrusage there begins with what the parent had when it forked
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    if found is not None:
        return int(found[1]) * 1024
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, else kilobytes


def rss_bytes() -> int:
    """The resident set of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True, slots=True)
class Room:
    """So many more bytes can be had, and what sets that limit. `own` limits are those of each process, others those of
    all together."""

    bytes: int
    limit: str
    own: bool = False


def rooms() -> tuple[Room, ...]:
    """What every limit leaves: the machine's memory and swap, this process's `ulimit`, the container's cgroups."""
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    return (Room(free, "this machine's memory"), *_by_process(), *_by_cgroup(Path("/proc/self/cgroup"), CGROUPS))


CGROUPS = Path("/sys/fs/cgroup")


def _by_process() -> Iterator[Room]:
    if sys.platform == "win32":
        return
    import resource

    taken = psutil.Process().memory_info()
    for name, limit, used in (
        ("RLIMIT_AS", "ulimit -v", taken.vms),
        ("RLIMIT_DATA", "ulimit -d", getattr(taken, "data", taken.rss)),
    ):
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY:
            yield Room(max(0, soft - used), f"{limit}, which allows {soft:,} bytes", own=True)


# By version: the limit, what is taken, and what of that are files in memory that the system gives up first.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def _by_cgroup(membership: Path, mounted: Path) -> Iterator[Room]:
    """What the cgroups leave that the process is in, by the `membership` file of the system, and those above them; in a
    container, whose own group is mounted as if it were the root, that."""
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        version = 1 if controllers else 2
        root = mounted / "memory" if version == 1 else mounted
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            found = _left_in(folder, version)
            if found is not None:
                yield found
            if folder == root:
                break


def _left_in(folder: Path, version: int) -> Room | None:
    """What one cgroup leaves; None where it is not there or has no limit."""
    limit, taken, files = _FILES[version]
    try:
        most, used = (int((folder / name).read_text()) for name in (limit, taken))
        given_up = re.search(rf"^{files} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # ValueError: "max"
        return None
    if most >= UNLIMITED:
        return None
    left = most - used + (int(given_up[1]) if given_up else 0)
    return Room(max(0, left), f"the container's limit of {most:,} bytes ({folder})")


UNLIMITED = 2**60  # version 1 writes a number of pages that no machine has
