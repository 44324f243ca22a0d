"""Pictures: what is small in them stands where nothing else is."""

from __future__ import annotations

import numpy as np

from mpsearch.show.plots import INSETS, emptiest


def test_the_inset_stands_where_no_points_are() -> None:
    falling = np.stack([np.linspace(0.05, 0.95, 500), np.linspace(0.95, 0.4, 500)], axis=1)
    bent = np.stack([np.linspace(0.05, 0.95, 500), 0.1 + 0.8 * np.exp(-np.linspace(0, 20, 500))], axis=1)
    for points in (falling, bent, np.concatenate([bent, bent[:, ::-1]])):
        left, bottom, width, height = emptiest(points)
        x, y = points.T
        assert not ((x >= left) & (x <= left + width) & (y >= bottom) & (y <= bottom + height)).any()
    assert emptiest(falling) == INSETS[0] != emptiest(bent)
