"""Products with a matrix of parameters are linear layers, however the code writes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recon.graph.layers import Linear
from recon.graph.network import capture


class Written(nn.Module):
    """GPT-2's Conv1D (addmm with weights (in, out)), a bare product, and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8))
        self.out = nn.Parameter(torch.randn(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, 6), self.weight).view(*x.shape[:2], 8)
        y = (y @ y.transpose(1, 2)).softmax(-1) @ y
        logits: Tensor = (y @ self.out).mean(1)
        return logits


def test_they_are_layers() -> None:
    model, x = Written().eval(), torch.randn(5, 7, 6)
    network = capture(model, x[:3])
    assert network.table.names == ("weight", "out")
    assert all(isinstance(network.layer(name), Linear) for name in network.table.names)
    assert torch.equal(network.layer("out").weight, model.out.T)
    assert torch.allclose(network.layer("weight").bias, model.bias)
    assert [product.macs for product in network.table.products] == [7 * 7 * 8, 7 * 8 * 7]
    assert sum(layer.macs for layer in network.table) == 7 * (6 * 8 + 8 * 5)
    with torch.no_grad():
        assert torch.allclose(network.model(x), model(x), atol=1e-5)
