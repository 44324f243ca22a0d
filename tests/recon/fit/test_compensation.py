"""Weights that make up for errors of their inputs: against a known error, and against none that could be known."""

from __future__ import annotations

import torch
from captured import of_images, task_of
from torch import Tensor, nn

from recon.compute.store import Store
from recon.fit.compensation import _is_added_to_the_output, compensated
from recon.graph.patterns import leading_to


class Lone(nn.Module):
    """One layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_linear_error_of_the_inputs_is_undone() -> None:
    torch.manual_seed(0)
    kinds: list[tuple[nn.Module, tuple[int, ...]]] = [
        (nn.Conv2d(8, 6, 3), (8, 6, 6)),
        (nn.Conv2d(8, 8, 3, groups=8), (8, 6, 6)),
        (nn.Conv1d(8, 6, 3), (8, 30)),
        (nn.ConvTranspose2d(8, 6, 3, 2), (8, 6, 6)),
        (nn.Linear(8, 5), (8,)),
    ]
    for layer, size in kinds:
        net = of_images(Lone(layer), size)
        float_x = torch.randn(64, *size)
        gain = torch.linspace(0.7, 1.4, 8).view(1, 8, *[1] * (len(size) - 1))
        # What the part before it has made of them. Not all outputs of a transposed convolution see an offset alike.
        x = gain * float_x + (0.0 if isinstance(layer, nn.ConvTranspose2d) else 0.3)
        store = Store(2**30, torch.device("cpu"))
        with torch.no_grad():
            task = task_of(net, x, float_x, store)
            module = net.layer("layer")
            wrong = (module(x) - layer(float_x)).square().mean()
            _, weight, shift = compensated(task, "layer")
            module.weight.data, module.bias.data = weight, module.bias + shift
            left = (module(x) - layer(float_x)).square().mean()
        assert left < 0.1 * wrong, layer  # what the damping leaves


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


def test_the_last_layer_makes_up_for_the_shortcut_as_well() -> None:
    torch.manual_seed(0)
    float_x = torch.randn(64, 8, 6, 6)
    x = torch.linspace(0.7, 1.4, 8).view(1, 8, 1, 1) * float_x + 0.3
    model = Shortcut()
    net = of_images(model, (8, 6, 6))
    store = Store(2**30, torch.device("cpu"))
    with torch.no_grad():
        wrong = (net.model(x) - model(float_x)).square().mean()
        _, weight, shift = compensated(task_of(net, x, float_x, store), "layer")
        layer = net.layer("layer")
        layer.weight.data, layer.bias.data = weight, layer.bias + shift
        assert (net.model(x) - model(float_x)).square().mean() < 0.01 * wrong


class Variant(Shortcut):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        ends = {"plain": lambda: z + x, "twice": lambda: x + z + 1.0, "scaled": lambda: torch.add(x, z, alpha=2)}
        ends |= {"doubled": lambda: z + z, "activated": lambda: torch.relu(x + z), "used": lambda: (x + z) + z}
        return ends[self.how]()


def test_only_what_is_added_once_counts_as_added() -> None:
    for how in ("plain", "twice", "scaled", "doubled", "activated", "used"):
        (unit,) = of_images(Variant(how), (8, 6, 6)).units
        assert _is_added_to_the_output(unit.module, "layer") == (how in ("plain", "twice")), how


def test_what_leads_to_a_layer_ends_there() -> None:
    net = of_images(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)), (4,))
    x = torch.randn(5, 4)
    part = leading_to(net.module, "2")
    (z,) = part(x)
    assert torch.equal(z, net.layer("2")(net.layer("0")(x).relu()))
    assert [str(node.target) for node in part.graph.nodes if node.op == "call_module"] == ["0", "2"]
    assert part.get_submodule("2") is net.layer("2")
    assert leading_to(net.module, "elsewhere") is net.module


def test_what_the_samples_do_not_determine_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    net = of_images(Lone(nn.Linear(64, 16)), (64,))
    x = torch.randn(96, 64, generator=generator)  # hardly more samples than inputs
    noise = 0.5 * torch.randn(96, 64, generator=generator)
    store = Store(2**30, torch.device("cpu"))
    _, weight, _ = compensated(task_of(net, x, x + noise, store), "layer")
    before = net.layer("layer").weight
    assert (weight - before).norm() < 0.05 * before.norm()
