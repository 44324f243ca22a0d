"""How wide the ranges of a unit's inputs are: so wide that its output comes nearest to its target."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon.fit.task import UnitTask
from recon.quantizers.inputs import InputQuantizer
from recon.quantizers.insert import find_ranges, quantizers_of

IMAGES = 64
STEP = math.log(1.1)
LOPSIDED, HALVINGS = 16, 4  # a range of which less than a sixteenth is below zero; how often its step may be halved


@torch.no_grad()
def fit_ranges(task: UnitTask) -> None:
    """Gives the input quantizers of a unit the grids of least squared error, then widens or narrows them, one after
    another, for as long as the unit's output, its weights float, comes nearer to the target on images that teach.

    What a tensor loses says little of what its readers lose: they may cut off the same values, or weigh errors that act
    together. Behind SiLU, a channel that lives between -0.28 and 0 can matter more than those that reach a hundred: a
    range with so little below zero is tried at halves of its step first, its lower end kept.
    """
    find_ranges(task.module, task.layers, task.x)
    pick = task.draw(IMAGES)
    quantizers = quantizers_of(task.layers.values())
    least = float(task.error(pick)) if quantizers else math.inf
    for quantizer in quantizers:
        least = _halved(task, quantizer, pick, least)
        for step in (STEP, -STEP):
            while True:
                quantizer.log_scale.data += step
                error = float(task.error(pick))
                if not error < least:  # nor if it is no number
                    break
                least = error
            quantizer.log_scale.data -= step


def _halved(task: UnitTask, quantizer: InputQuantizer, pick: Tensor, least: float) -> float:
    """Gives a lopsided quantizer the step, a power of two times its own, with the least error of the unit's output on
    the samples `pick`; gives that error, `least` where it stays as it is."""
    start, zero = float(quantizer.log_scale), quantizer.zero_point
    best = start, zero
    halvings = HALVINGS if 0 < zero < 2**quantizer.bits / LOPSIDED else 0
    for halving in range(1, halvings + 1):
        step = start - halving * math.log(2), zero * 2**halving
        quantizer.set_step_size(*step)
        error = float(task.error(pick))
        if error < least:
            least, best = error, step
    quantizer.set_step_size(*best)
    return least
