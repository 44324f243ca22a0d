"""A likelihood: the heads that the outputs of a network have, independent of each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hwmodel.errors import InputError
from recon.likelihood.cells import Cells
from recon.likelihood.heads import Categorical, Head, signs

Outputs = Mapping[str, Tensor]  # by path


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Heads over parts of the outputs, by path as `named_parts` gives them. Parts without a head do not count.

    Raises InputError where there is no head, or two have the same part.
    """

    heads: tuple[Head | Cells, ...]

    def __post_init__(self) -> None:
        parts = [head.part for head in self.heads if not isinstance(head, Cells)]
        if not self.heads:
            raise InputError(
                "a likelihood needs at least one head; name the output that counts, as Categorical('logits')"
            )
        if len(set(parts)) < len(parts):
            raise InputError(f"each output may have one head, got heads for {', '.join(map(repr, parts))}")

    def check(self, outputs: Mapping[str, Tensor]) -> None:
        """Raises InputError where a part is missing, or a head does not fit its output."""
        for head in self.heads:
            if isinstance(head, Cells):
                head.check(outputs)
                continue
            if head.part not in outputs:
                wanted = repr(head.part) if head.part else "a single tensor"
                raise InputError(
                    f"the task expects output {wanted}, the network gives {describe(outputs)}; name one of these"
                )
            head.check(outputs[head.part])

    def probe(self, outputs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Σ_n ⟨v_n, outputs_n⟩, a scalar whose gradients have the Fisher information as second moment, per sample.

        With it, E[½ ⟨v_n, Δ⟩²] is the divergence in nats that a small error Δ of the outputs of sample n causes.
        `generator` is one of the CPU: the same draws on every device.
        """
        first, *others = self.heads
        total = _probe(first, outputs, generator).sum()
        for head in others:  # E[v] need not be zero: without signs, heads would seem to depend on each other
            by_sample = _probe(head, outputs, generator)
            total = total + (by_sample * signs((len(by_sample),), generator).to(by_sample)).sum()
        return total

    def divergence(self, reference: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Tensor:
        """KL(reference ‖ outputs) (N,) in nats per sample, float64: the sum of the heads'.

        Raises InputError where the shapes of a part differ.
        """
        total = torch.zeros((), dtype=torch.float64)
        for head in self.heads:
            parts = head.parts if isinstance(head, Cells) else (head.part,)
            for part in parts:
                known, z = reference[part], outputs[part]
                if known.shape != z.shape:
                    raise InputError(
                        f"outputs must have the shape of the reference, {list(known.shape)}, got {list(z.shape)}"
                        + (f" for {part!r}" if part else "")
                    )
            if isinstance(head, Cells):
                nats = head.divergence(reference, outputs)
            else:
                nats = head.divergence(reference[head.part], outputs[head.part])
            total = total.to(nats.device) + nats
        return total


def _probe(head: Head | Cells, outputs: Outputs, generator: torch.Generator) -> Tensor:
    if isinstance(head, Cells):
        return head.probe(outputs, generator)
    return head.probe(outputs[head.part], generator)


CLASSIFIER = Likelihood((Categorical(dim=-1),))


def describe(outputs: Mapping[str, Tensor]) -> str:
    """Parts with their shapes, for messages: "'out' [8, 21, 32, 32], 'aux' [8, 21, 32, 32]"."""
    named = [f"{part!r} {list(z.shape)}" if part else f"a single tensor {list(z.shape)}" for part, z in outputs.items()]
    return ", ".join(named) or "no tensor"
