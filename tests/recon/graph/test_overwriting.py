"""What is written over: nothing that is read again, and the results are the same to the bit."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from recon.graph.network import capture
from recon.graph.nodes import aten
from recon.graph.overwriting import overwriting


class Shared(nn.Module):
    """A layer whose output is read twice, one that only its activation reads, sums over and beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.scale = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.one(x)
        y = torch.relu(z) + z
        pooled = self.scale(y.mean((2, 3), keepdim=True))
        return torch.relu(self.two(y) + y) + (pooled + x)


def test_nothing_is_overwritten_that_is_read_again() -> None:
    torch.manual_seed(0)
    network = capture(Shared().eval(), torch.randn(2, 3, 8, 8))
    x = torch.randn(3, 3, 8, 8)
    kept, expected = x.clone(), network.module(x)[0]
    found = overwriting(network.module)
    assert torch.equal(found(x)[0], expected)
    assert torch.equal(x, kept)
    assert torch.equal(network.module(x)[0], expected)
    named = [node.target for node in found.graph.nodes]
    # The first activation reads what the sum reads as well; the pooled sum has another shape than its layer's output.
    assert named.count(aten.relu.default) == named.count(aten.relu_.default) == 1
    assert named.count(aten.add.Tensor) == 2
    assert named.count(aten.add_.Tensor) == 2


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5"])
def test_real_networks_give_the_same_to_the_bit(name: str) -> None:
    torch.manual_seed(0)
    network = capture(getattr(torchvision.models, name)(weights=None).eval(), torch.randn(2, 3, 64, 64), name)
    x = torch.randn(3, 3, 64, 64)
    inference = overwriting(network.module)
    with torch.no_grad():
        assert torch.equal(inference(x)[0], network.module(x)[0])
    assert any(
        str(node.target).split(".")[1].endswith("_") for node in inference.graph.nodes if node.op == "call_function"
    )
