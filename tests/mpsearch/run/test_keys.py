"""What makes files of a run current, and what does not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpsearch.run.keys import graph_digest
from recon.graph.network import capture


class Net(nn.Module):
    """A convolution and what comes after it."""

    def __init__(self, slope: float, smooth: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.slope, self.smooth = slope, smooth

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = torch.tanh(y) if self.smooth else nn.functional.leaky_relu(y, self.slope)
        return self.fc(y.mean((2, 3)))


def test_the_operations_of_a_network_count_not_its_values() -> None:
    def digest(net: nn.Module) -> str:
        return graph_digest(capture(net.eval(), torch.rand(2, 3, 8, 8)))

    other = Net(0.1)
    nn.init.zeros_(other.fc.weight)
    assert digest(Net(0.1)) == digest(Net(0.1)) == digest(other)
    assert len({digest(Net(0.1)), digest(Net(0.2)), digest(Net(0.1, smooth=True))}) == 3
