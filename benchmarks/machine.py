"""What a benchmark ran on, for its results, and what of the processor it took."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """The processor's name and the number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": os.cpu_count()}


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of a piece of work."""
    begin = time.process_time()
    work()
    return time.process_time() - begin
