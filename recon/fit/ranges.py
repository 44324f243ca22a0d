"""How wide the ranges of a unit's inputs are: so wide that its output comes nearest to its target."""

from __future__ import annotations

import math

import torch

from recon.fit.task import UnitTask
from recon.quantizers.insert import find_ranges, quantizers_of

IMAGES = 64
STEP = math.log(1.1)


@torch.no_grad()
def fit_ranges(task: UnitTask) -> None:
    """Gives the input quantizers of a unit the grids of least squared error, then widens or narrows them, one after
    another, for as long as the unit's output, its weights float, comes nearer to the target on images that teach.

    What a tensor loses says little of what its readers lose: they may cut off the same values, or weigh errors that act
    together.
    """
    find_ranges(task.module, task.layers, task.x)
    pick = task.draw(IMAGES)
    quantizers = quantizers_of(task.layers.values())
    least = float(task.error(pick)) if quantizers else math.inf
    for quantizer in quantizers:
        for step in (STEP, -STEP):
            while True:
                quantizer.log_scale.data += step
                error = float(task.error(pick))
                if not error < least:  # nor if it is no number
                    break
                least = error
            quantizer.log_scale.data -= step
