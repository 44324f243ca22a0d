"""Second-order rounding along a trellis: every survivor of the search carries the errors that it has made."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.fit.obq import made_up_together
from recon.quantizers.coded import FARTHEST
from recon.quantizers.trellis import FOLLOWING, MIDDLE, STATES, Path, path_of, steps_of
from recon.quantizers.weights import Grid

TOLD = 64  # channels that tell how often codes are
PARTS = 4  # of the channels that are rounded together: one moves at a time
ROWS = 128  # output channels at a time: a cache holds what a column needs
BLOCK = 128  # columns: what is decided is 128 to 256 of them back; 32 to 64 cost 2 % of the error, 64 to 128 0.6 %
RARE = 1e-7  # the probability of a code that the normal distribution knows nothing of
NEVER, FAR = 1e6, np.float32(1e30)  # bits of a code that a quantizer does not have; of a state that no path leads to
HALF = STATES // 2
# For every state the two that lead to it, counted parity by parity.
BEFORE = np.array(
    [[p * STATES + s for s in range(STATES) for p in (0, 1) if FOLLOWING[s, p] == to] for to in range(STATES)]
)

Bits = NDArray[np.float32]  # (2, 2·127 + 1): of every code, by quantizer


def finer(rate: float) -> float:
    """By how many octaves steps on a path are wider than those of a uniform grid that takes as many bits: about one
    finer, as its quantizers are twice as coarse. Measured on eight layers, within 0.03 bits."""
    return 2 ** (-1.17 * rate) - 0.99


@dataclass(frozen=True, slots=True)
class _Price:
    """What the `bits` of codes (2, 2·127 + 1), by quantizer, cost in groups of channels of which each has a `weight`
    (G,) for a bit."""

    bits: Bits
    weight: NDArray[np.float32]

    @classmethod
    def of(cls, bits: Bits, deviation: float, ridge: Tensor) -> _Price:
        """What is beyond the bits of normally distributed codes with this deviation, which are in a `ridge` (G,)
        already: they grow with the square of a code, so that the ridge says what a bit costs."""
        steps = np.arange(-FARTHEST, FARTHEST + 1, dtype=np.float32)
        a_square = math.log2(math.e) / (2 * deviation**2)
        weight = np.asarray((ridge / a_square).cpu().numpy().astype(np.float32))
        return cls(bits - np.float32(a_square) * steps**2, weight)


def trellis_rounding(
    wanted: Tensor, grid: Grid, hessian: Tensor, ridged: Tensor, metric: Tensor | None
) -> tuple[Grid, Tensor]:
    """A grid and codes (O, K) on a path of the trellis for each output channel, on a grid that is to hold `wanted`.

    The weight `wanted` (O, K) and the Hessian `ridged` (G, K, K) are what `recon.fit.start.shrunk` makes of the
    `hessian` (G, K, K), so that bits count that grow with the square of a code; what codes take besides is weighed
    here. They are rounded once as if they were normally distributed, and again as they then are: where there is the
    `metric` (O, O) of the outputs, a fourth of the channels at a time, so that each makes up for the errors of the
    others. Without it, a few channels tell of all.
    """
    ridge = (ridged - hessian)[:, 0, 0]
    deviation = float((wanted / grid.scale[:, None]).square().mean().sqrt().clamp_min(1e-3))
    price = _Price.of(_of_normal(deviation), deviation, ridge)
    few = max(1, len(wanted) // TOLD) if metric is None and len(hessian) == 1 else 1
    part = replace(grid, scale=grid.scale[::few], zero_point=grid.zero_point[::few])
    codes = _rounded(wanted[::few], part, ridged, price)
    path = path_of((codes - part.zero_point[:, None]).cpu().numpy().astype(np.int16))
    if path:
        price = _Price.of(_of_codes(path), deviation, ridge)
    if metric is None:
        return grid, _rounded(wanted, grid, ridged, price)

    def rounded(wanted: list[Tensor], _: list[Tensor], grids: list[Grid]) -> list[Tensor]:
        return [_rounded(target, own, ridged, price) for target, own in zip(wanted, grids, strict=True)]

    return made_up_together(wanted, [codes], [grid], ridged, metric, rounded, PARTS, 1)[0]


def _of_normal(deviation: float) -> Bits:
    """Bits of codes that stand for normally distributed weights of so many steps."""
    steps = np.arange(-FARTHEST, FARTHEST + 1)
    found = np.full((2, len(steps)), NEVER, np.float32)
    for quantizer in (0, 1):
        own = steps[(steps % 2 == quantizer) | (steps == 0)]
        below = [0.5 * (1 + math.erf(middle / deviation / math.sqrt(2))) for middle in (own[1:] + own[:-1]) / 2]
        share = np.diff(np.array([0.0, *below, 1.0])) + RARE
        found[quantizer, own + FARTHEST] = -np.log2(share / share.sum())
    return found


def _of_codes(path: Path) -> Bits:
    """Bits of codes by how often those of a path are; a little for those that never are."""
    found = np.full((2, 2 * FARTHEST + 1), NEVER, np.float32)
    for quantizer in (0, 1):
        counts = np.bincount(path.indices[path.second == bool(quantizer)], minlength=2 * MIDDLE + 1) + 0.02
        at = steps_of(np.arange(len(counts)) - MIDDLE, bool(quantizer))
        inside = np.abs(at) <= FARTHEST
        found[quantizer, at[inside] + FARTHEST] = -np.log2(counts / counts.sum())[inside]
    return found


def _rounded(wanted: Tensor, grid: Grid, hessian: Tensor, price: _Price) -> Tensor:
    """Codes (O, K) of a weight (O, K) on `grid` under `hessian` (G, K, K), which weigh the error that GPTQ's feedback
    leaves and the price of codes."""
    rows = len(wanted) // len(hessian)
    steps = (wanted / grid.scale[:, None]).float()
    found = torch.empty_like(steps)
    for group, own in enumerate(hessian):
        upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(own)), upper=True).cpu().numpy()
        bits = price.weight[group] * price.bits
        for first in range(group * rows, (group + 1) * rows, ROWS):
            part = slice(first, min(first + ROWS, (group + 1) * rows))
            columns = np.ascontiguousarray(steps[part].T.cpu().numpy())
            found[part] = torch.from_numpy(_survivor(columns, upper, bits).T.astype(np.float32)).to(found.device)
    return found + grid.zero_point[:, None]


def _survivor(columns: NDArray[np.float32], upper: NDArray[np.float32], price: Bits) -> NDArray[np.int8]:
    """The path of little cost (K, R), in steps from zero, for rows whose weights are `columns` (K, R) in steps: the
    squared errors that are left, over the squared pivots of `upper` (K, K), and the `price` of the codes.

    At the end of each block it is decided where the best survivor was at its head: the errors before that are those of
    all, and who was elsewhere is given up.
    """
    length, rows = columns.shape
    left, path = columns.copy(), np.empty((length, rows), np.int8)
    row = np.arange(rows)
    cost = np.full((STATES, rows), FAR)
    cost[0] = 0
    before = _Block.empty(rows)
    for first in range(0, length, BLOCK):
        last = min(first + BLOCK, length)
        head = slice(first - len(before.errors), first)
        ahead = np.tile(left[first:last], STATES)
        ahead -= upper[head, first:last].T @ before.errors
        block, cost = _through(ahead, upper[first:last, first:last], price, cost)
        at = block.root[cost.argmin(0), row]
        path[head] = before.path(at)
        left[last:] -= upper[head, last:].T @ before.errors.reshape(-1, STATES, rows)[:, at, row]
        cost[block.root != at] = FAR
        before = block
    path[length - len(before.errors) :] = before.path(cost.argmin(0))
    return path


@dataclass(frozen=True, slots=True)
class _Block:
    """What survivors went through in some columns: by state the `errors` (B, S·R) that they have made, over the pivots,
    and the state (S, R) that they began in; the codes that each column `took` and the states that they `came` from
    (B, S, R)."""

    errors: NDArray[np.float32]
    root: NDArray[np.int64]
    took: NDArray[np.int8]
    came: NDArray[np.int8]

    @classmethod
    def empty(cls, rows: int) -> _Block:
        """None yet."""
        none = np.empty((0, STATES, rows), np.int8)
        return cls(np.empty((0, STATES * rows), np.float32), np.empty((STATES, rows), np.int64), none, none)

    def path(self, state: NDArray[np.int64]) -> NDArray[np.int8]:
        """The codes (B, R) that lead to `state` (R,)."""
        codes, row = np.empty((len(self.took), len(state)), np.int8), np.arange(len(state))
        for k in range(len(codes) - 1, -1, -1):
            codes[k], state = self.took[k, state, row], self.came[k, state, row]
        return codes


def _through(
    ahead: NDArray[np.float32], upper: NDArray[np.float32], price: Bits, cost: NDArray[np.float32]
) -> tuple[_Block, NDArray[np.float32]]:
    """The survivors behind a block whose weights are, by the state that a survivor begins in, `ahead` (B, S·R), and
    what they have cost (S, R), from what they had before."""
    length, rows = len(ahead), cost.shape[1]
    row, pivots = np.arange(rows), upper.diagonal()
    errors, root = np.empty_like(ahead), np.arange(STATES * rows)
    took, came = np.empty((2, length, STATES, rows), np.int8)
    for k in range(length):
        place = ahead[k].take(root)
        if k:
            place -= upper[:k, k] @ errors[:k]
        codes, costs = _choices(place.reshape(STATES, rows), np.float32(1 / pivots[k] ** 2), price)
        costs += cost
        ways = costs.reshape(2 * STATES, rows)
        one, other = ways[BEFORE[:, 0]], ways[BEFORE[:, 1]]
        way = np.where(other < one, BEFORE[:, 1:], BEFORE[:, :1])
        cost = np.minimum(one, other, out=one)
        cost -= cost.min(0)
        state = way % STATES
        code, origin = codes.take(way * rows + row).ravel(), (state * rows + row).ravel()
        took[k], came[k] = code.reshape(STATES, rows), state
        errors[:k] = errors[:k].take(origin, 1)
        np.subtract(place.take(origin), code, out=errors[k])
        errors[k] *= 1 / pivots[k]
        root = root.take(origin)
    return _Block(errors, root.reshape(STATES, rows) // rows, took, came), cost


def _choices(
    place: NDArray[np.float32], weight: np.float32, price: Bits
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """By the parity of its index the code (2, S, R) nearest to where survivors (S, R) are, and what it costs. The first
    quantizer has …, -4, 0, 4, … and …, -2, 2, …; the second zero, 3, 7, … and 1, 5, …, on either side."""
    codes = np.empty((2, *place.shape), np.float32)
    quarter, most = place[:HALF] * 0.25, FARTHEST // 4
    np.multiply(np.rint(quarter).clip(-most, most), 4, out=codes[0, :HALF])
    np.add(np.floor(quarter, out=quarter).clip(-most - 1, most) * 4, 2, out=codes[1, :HALF])
    size = np.abs(place[HALF:]) * 0.25
    for parity, least in enumerate((3, 1)):
        code = np.rint(size - least / 4).clip(0, most) * 4
        code += least
        np.copysign(code, place[HALF:], out=codes[parity, HALF:])
    costs = place - codes
    costs *= costs
    costs *= weight
    at = codes.astype(np.int64)
    at += FARTHEST
    costs[:, :HALF] += price[0].take(at[:, :HALF])
    costs[:, HALF:] += price[1].take(at[:, HALF:])
    zero = place[HALF:] ** 2
    zero *= weight
    zero += price[1, FARTHEST]
    codes[0, HALF:] *= costs[0, HALF:] <= zero
    np.minimum(costs[0, HALF:], zero, out=costs[0, HALF:])
    return codes, costs
