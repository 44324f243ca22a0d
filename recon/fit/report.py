"""The record of one reconstructed unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What happened to one unit. `bits` are the widths of its layers' codes, or their rates. Losses are Fisher-weighted
    squared errors over the float output's mean power.

    `outcome` is `enough` where plain rounding lost next to nothing and was kept, `nearest` where reconstruction was
    worse than plain rounding and was put back.
    """

    block: str
    bits: tuple[float, ...]
    loss_before: float
    loss_after: float
    iterations: int
    seconds: float
    outcome: Literal["reconstructed", "enough", "nearest"]
