"""The peak of memory, in bytes on every system."""

from __future__ import annotations

import subprocess
import sys

GROWN = """
from mpsearch.run.memory import peak_rss_bytes
before = peak_rss_bytes()
held = bytearray(b"x") * 300_000_000
grown = peak_rss_bytes()
del held
print(before, grown, peak_rss_bytes())
"""


def test_the_peak_is_in_bytes_and_stays() -> None:
    done = subprocess.run([sys.executable, "-c", GROWN], check=True, capture_output=True, text=True)
    before, grown, after = map(int, done.stdout.split())
    assert 2.5e8 < grown - before < 3.5e8
    assert after > 0.99 * grown  # the system counts in batches of pages
