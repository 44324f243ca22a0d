"""Bytes of entropy-coded layers, held to what they may take together.

What codes take is known when a unit is finished. What its layers took too much, or left, the steps of the layers after
it make up for; what is too much in the end, the codes that come cheapest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recon.graph.layers import Layer
from recon.quantizers.coded import ZERO, coded_bytes, spread_evenly, symbols_of
from recon.quantizers.learned import bias_of, rounding_of

MOST = 0.9999  # of what is wanted: what the coder leaves nothing of
CLOSE, LAST_CLOSE = 0.01, 0.001  # of a unit's bytes: nearer to them it is not rounded again
MOST_OCTAVES = 0.5  # by which a step may change: where little is left to make up for it, the end does
SAME_STATE = 4  # steps between codes of one quantizer whose indices have the same parity
HALVINGS = 20  # of the interval that a dead zone's width is looked for in


@dataclass
class RateControl:
    """`wanted` bytes by layer, of those that are entropy-coded, as `coded_bytes` counts them; what is `spent` of them,
    and how many codes each layer has."""

    wanted: Mapping[str, float]
    counts: Mapping[str, int]
    spent: dict[str, float] = field(default_factory=dict)

    def spend(self, layers: Mapping[str, Layer]) -> None:
        """Notes what finished layers take."""
        self.spent.update({name: stored_bytes(layer) for name, layer in layers.items() if name in self.wanted})

    def widened(self) -> dict[str, float]:
        """By how many octaves the steps of the layers that are left are to be wider: a bit of every code for each."""
        left = [name for name in self.wanted if name not in self.spent]
        excess = 8 * sum(self.spent[name] - self.wanted[name] for name in self.spent)
        octaves = excess / max(sum(self.counts[name] for name in left), 1)
        return dict.fromkeys(left, max(-MOST_OCTAVES, min(octaves, MOST_OCTAVES)))

    def corrected(self, layers: Mapping[str, Layer], widened: Mapping[str, float]) -> dict[str, float] | None:
        """By how many octaves the steps of rounded layers, which were `widened`, should have been wider to take what is
        due; None where they nearly do. The last layers are to take no more than what is left for them."""
        names = [name for name in layers if name in self.wanted]
        count = sum(self.counts[name] for name in names)
        if all(name in self.spent or name in names for name in self.wanted):
            close = LAST_CLOSE
            aim = (1 - close) * (MOST * sum(self.wanted.values()) - sum(self.spent.values()))
        else:
            close = CLOSE
            due = self.widened()
            aim = sum(self.wanted[name] - due[name] * self.counts[name] / 8 for name in names)
        excess = sum(stored_bytes(layers[name]) for name in names) - aim
        if not names or abs(excess) <= close * aim:
            return None
        return {name: widened[name] + max(-MOST_OCTAVES, min(8 * excess / count, MOST_OCTAVES)) for name in names}

    @torch.no_grad()
    def trim(self, layers: Mapping[str, Layer]) -> None:
        """Moves codes nearer to zero, as many as it takes for what they take together to be no more than wanted: by one
        step those that stand least beyond the middle between the two, in all layers alike; on a path of the trellis, to
        which four steps lead back, the largest."""
        layers = {name: layer for name, layer in layers.items() if name in self.wanted}
        most = MOST * sum(self.wanted.values())
        if sum(map(stored_bytes, layers.values())) <= most:
            return
        codes = {name: rounding_of(layer).code for name, layer in layers.items()}
        places = {name: code.detach().clone() for name, code in codes.items()}
        tables = {name: len(symbols_of(rounding_of(layer).freeze().codes)) for name, layer in layers.items()}

        def put(width: float) -> float:
            for name, code in codes.items():
                code.data = _nearer_to_zero(places[name], width, SAME_STATE if tables[name] > 1 else 1)
            return sum(map(stored_bytes, layers.values()))

        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if put(middle) <= most else (middle, high)
        put(high)


def stored_bytes(layer: Layer) -> float:
    """What a layer with a rounding takes in a file."""
    return coded_bytes(rounding_of(layer).freeze(), bias_of(layer).detach())


def _nearer_to_zero(place: Tensor, width: float, step: int) -> Tensor:
    """Continuous codes (O, …), some of them moved by `step`, as many as the `width`, 0 to 1, says: those that stand
    least beyond the middle between two, or, where steps are large, the farthest. Beyond ½ all of them move by more."""
    size = (place - ZERO).abs()
    rounded = size.round()
    far = rounded.amax()
    if step == 1:
        first = size - rounded + 0.5 < 2 * width
    else:  # of those that are as far, some before others
        turn = spread_evenly(size.numel()).to(size).view(size.shape)
        first = rounded + turn > (1 - 2 * width) * (far + 1)
    moves = first + torch.floor(max(2 * width - 1, 0.0) * far / step)
    moves = torch.minimum(moves, torch.floor(rounded / step))
    return torch.where(moves > 0, ZERO + (place - ZERO).sign() * (rounded - step * moves), place)


def control(wanted: Mapping[str, float] | None, layers: Iterable[tuple[str, Layer]]) -> RateControl | None:
    """Control of what `layers` take, where it is said what is wanted."""
    if not wanted:
        return None
    return RateControl(wanted, {name: layer.weight.numel() for name, layer in layers if name in wanted})
