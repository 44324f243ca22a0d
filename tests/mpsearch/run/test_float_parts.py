"""An impossible size budget names the parts that stay float, with their bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mpsearch
from hwmodel import BudgetError


class Embedded(nn.Module):
    """A network most of whose parameters are used directly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.position = nn.Parameter(torch.randn(1, 16, 300))
        self.norm, self.head = nn.LayerNorm(300), nn.Linear(300, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x + self.position).mean(1))
        return logits


def test_they_are_named_with_their_bytes() -> None:
    with pytest.raises(BudgetError) as refused:
        mpsearch.search(Embedded(), [torch.randn(32, 16, 300)], "5kB")
    line = str(refused.value)
    assert "10,800 bytes of it stay float: position (9,600), norm.bias (600), norm.weight (600)" in line
    assert "\n" not in line
