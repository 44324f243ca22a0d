"""How to reconstruct."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from hwmodel import InputError
from recon.graph.granularity import Granularity
from recon.quantizers.rounding import RoundingName

Start = Literal["second-order", "nearest"]
Target = Literal["same inputs", "float network"]
Order = Literal["joint", "weights first"]
Weighting = Literal["fisher", "mse"]
Basis = Literal["balanced", "given"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reconstruct. `steps` are per unit. With early stopping, up to four times as many where its start leaves
    much to do; straight-through rounding ends sooner, where held-back images stop coming nearer.

    - `granularity`: what is fitted at once. A stage is a run of blocks of one output resolution.
    - `basis` of linear bottlenecks, and widths of what depthwise convolutions read: `balanced` before anything is
      rounded, or as `given`.
    - `start`: second-order rounding, or every weight where it stood (`nearest`).
    - `symmetric`: the bits of weights whose grids have the zero-point in the middle.
    - `below_caps`: step sizes behind ReLU6 are such that the range of codes cuts off what ReLU6 does.
    - `target`: the float network's output (BRECQ), or the float unit's for the inputs that the quantized part before it
      gives (`same inputs`).
    - `weighting` of the squared error: the Fisher diagonal, or none (`mse`).
    - `order`: weights with activations quantized, of which the share `dropped` of the channels is left out at random in
      every step (QDrop), or first the weights with float activations, then the step sizes of the activations (BRECQ).
    - `early_stopping`: of plain rounding, the start and every cycle of descent, the candidate with the lowest held-out
      loss is kept; else the last. In the end the logits are rescaled to where the held-back samples' diverge least.
    - Rates are Adam's: of codes in code units; of log-scales and biases; of the log-scales of activations.
    - `regulariser` weighs AdaRound's push to integers, as in BRECQ's code (0.1 for MobileNetV2-like networks, 0.01 for
      ResNets); the straight-through rounding does not use it.
    - `memory_bytes`: inputs and outputs of units beyond it are kept in files.

    Raises InputError for values out of range.
    """

    steps: int = 40
    batch: int = 32
    seed: int = 0
    granularity: Granularity = "block"
    basis: Basis = "balanced"
    start: Start = "second-order"
    symmetric: tuple[int, ...] = ()
    below_caps: bool = False
    rounding: RoundingName = "straight-through"
    target: Target = "float network"
    weighting: Weighting = "fisher"
    order: Order = "joint"
    dropped: float = 0.0
    early_stopping: bool = True
    code_rate: float = 1e-2
    other_rate: float = 1e-3
    input_rate: float = 1e-3
    regulariser: float = 0.1
    memory_bytes: int = 2 * 2**30

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch", 1), ("seed", 0), ("memory_bytes", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.dropped < 1:
            raise InputError(f"the dropped share must be in [0, 1), got {self.dropped}")
        choices = {"granularity": Granularity, "basis": Basis, "start": Start, "rounding": RoundingName}
        for name, known in {**choices, "target": Target, "weighting": Weighting, "order": Order}.items():
            if getattr(self, name) not in get_args(known):
                raise InputError(f"{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")

    @classmethod
    def brecq(cls, steps: int = 20_000, regulariser: float = 0.01, seed: int = 0) -> Settings:
        """The recipe of BRECQ (arXiv 2102.05426, section 4 and its released code): AdaRound of one block after another
        on the Fisher-weighted error to the float network's output, then a quarter of the steps for the activations."""
        return cls(
            steps=steps,
            seed=seed,
            basis="given",
            start="nearest",
            rounding="adaround",
            target="float network",
            order="weights first",
            dropped=0.0,
            early_stopping=False,
            code_rate=1e-3,
            other_rate=0.0,
            regulariser=regulariser,
        )

    @classmethod
    def adaround(cls, steps: int = 10_000, seed: int = 0) -> Settings:
        """AdaRound (Nagel et al., ICML 2020, arXiv 2004.10568): one layer after another on the mean squared error."""
        return replace(cls.brecq(steps, seed=seed), granularity="layer", weighting="mse")
