"""The trellis: against the published distance of its code, and there and back."""

from __future__ import annotations

import heapq

import numpy as np

from recon.quantizers.trellis import FOLLOWING, SHORTEST, STATES, path_of, second_quantizer, steps_of

APART = {0: 0, 1: 1, 2: 4, 3: 1}  # squared steps between the nearest codes of two cosets of 4


def random_path(rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Codes (O, K) in steps from zero, on a path."""
    rng, states = np.random.default_rng(seed), np.zeros(rows, np.int64)
    codes = np.empty((rows, length), np.int16)
    for k in range(length):
        indices = np.rint(rng.normal(0, 2, rows)).astype(np.int64)
        codes[:, k] = steps_of(indices, second_quantizer(states))
        states = FOLLOWING[states, indices & 1]
    return codes


def test_the_code_has_the_distance_that_ungerboeck_lists() -> None:
    def coset(state: int, parity: int) -> int:
        return 2 * parity + int(second_quantizer(np.array(state)))

    ways = [(APART[2], *FOLLOWING[state]) for state in range(STATES)]  # two paths part by the parity
    heapq.heapify(ways)
    found: dict[tuple[int, int], int] = {}
    while ways:
        far, one, other = heapq.heappop(ways)
        if (one, other) in found:
            continue
        found[one, other] = far
        if one == other:
            break
        for a in (0, 1):
            for b in (0, 1):
                step = APART[(coset(one, a) - coset(other, b)) % 4]
                heapq.heappush(ways, (far + step, int(FOLLOWING[one, a]), int(FOLLOWING[other, b])))
    assert far == 14  # of 64 states: IEEE Trans. Inf. Theory 28, 1982, table I


def test_every_state_is_reached_from_two() -> None:
    assert np.bincount(FOLLOWING.ravel()).tolist() == [2] * STATES


def test_a_path_comes_back() -> None:
    codes = random_path(20, 100)
    path = path_of(codes)
    assert path is not None
    back = steps_of(path.indices.astype(np.int64) - 64, path.second)
    assert np.array_equal(back.T, codes)
    assert 0.3 < path.second.mean() < 0.7
    assert (codes.T[~path.second] % 2 == 0).all()
    assert (codes.T[path.second & (codes.T != 0)] % 2 != 0).all()


def test_what_is_on_no_path() -> None:
    codes = random_path(20, 100)
    codes[3, 50] += 1
    assert path_of(codes) is None
    assert path_of(random_path(5, SHORTEST)) is not None
    assert path_of(random_path(5, SHORTEST - 1)) is None
    assert path_of(np.zeros((5, 100), np.int16)) is None  # the second quantizer has none of them
