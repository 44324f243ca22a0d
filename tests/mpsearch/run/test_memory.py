"""The peak of memory, in bytes on every system."""

from __future__ import annotations

import numpy as np
import psutil

from mpsearch.run.memory import peak_rss_bytes


def test_the_peak_is_in_bytes_and_stays() -> None:
    before = peak_rss_bytes()
    assert 0.9 * psutil.Process().memory_info().rss < before < psutil.virtual_memory().total
    held = np.ones(max(before - psutil.Process().memory_info().rss, 0) // 8 + 25_000_000)  # 200 MB above the peak
    grown = peak_rss_bytes()
    assert 1e8 < grown - before < 1e9
    del held
    assert peak_rss_bytes() >= grown
