"""Weights that make up for errors of their inputs: against a known error, and against none that could be known."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from recon.compute.store import Store
from recon.fit.correction import _is_added_to_the_output, corrected
from recon.fit.task import UnitTask
from recon.graph.patterns import leading_to


def task_of(module: nn.Conv2d | nn.Linear, x: Tensor, float_x: Tensor, store: Store) -> UnitTask:
    float_module = copy.deepcopy(module)
    layers, generator = ({"layer": module}, {"layer": float_module}), torch.Generator()
    return UnitTask("unit", module, layers[0], x, float_module, layers[1], float_x, store, None, {}, True, generator)


def test_a_linear_error_of_the_inputs_is_undone() -> None:
    torch.manual_seed(0)
    for module in (nn.Conv2d(8, 6, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 5)):
        shape = (64, 8) if isinstance(module, nn.Linear) else (64, 8, 6, 6)
        float_x = torch.randn(shape)
        gain = torch.linspace(0.7, 1.4, 8).view(1, 8, *[1] * (len(shape) - 2))
        x = gain * float_x + 0.3  # what the part before it has made of them
        with Store(2**30, torch.device("cpu")) as store, torch.no_grad():
            task = task_of(module, x, float_x, store)
            _, weight, shift = corrected(task, "layer")
            wrong = (module(x) - module(float_x)).square().mean()
            module.weight.data, module.bias.data = weight, module.bias + shift
            left = (module(x) - task.float_module(float_x)).square().mean()
        assert left < 0.1 * wrong  # what the damping leaves


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
    module, float_module = (fx.symbolic_trace(Shortcut()) for _ in range(2))
    float_module.load_state_dict(module.state_dict())
    layer = module.layer
    with Store(2**30, torch.device("cpu")) as store, torch.no_grad():
        layers, generator = ({"layer": layer}, {"layer": float_module.layer}), torch.Generator()
        task = UnitTask(
            "unit", module, layers[0], x, float_module, layers[1], float_x, store, None, {}, True, generator
        )
        wrong = (module(x) - float_module(float_x)).square().mean()
        _, weight, shift = corrected(task, "layer")
        layer.weight.data, layer.bias.data = weight, layer.bias + shift
        assert (module(x) - float_module(float_x)).square().mean() < 0.01 * wrong


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
        assert _is_added_to_the_output(fx.symbolic_trace(Variant(how)), "layer") == (how in ("plain", "twice")), how


def test_what_leads_to_a_layer_ends_there() -> None:
    module = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)))
    x = torch.randn(5, 4)
    part = leading_to(module, "2")
    assert torch.equal(part(x), module.get_submodule("2")(module.get_submodule("0")(x).relu()))
    assert [str(node.target) for node in part.graph.nodes if node.op == "call_module"] == ["0", "1", "2"]
    assert part.get_submodule("2") is module.get_submodule("2")
    assert leading_to(module, "elsewhere") is module


def test_what_the_images_do_not_determine_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    module = nn.Linear(64, 16)
    x = torch.randn(96, 64, generator=generator)  # hardly more images than inputs
    noise = 0.5 * torch.randn(96, 64, generator=generator)
    with Store(2**30, torch.device("cpu")) as store:
        task = task_of(module, x, x + noise, store)
        _, weight, _ = corrected(task, "layer")
    assert (weight - module.weight).norm() < 0.05 * module.weight.norm()
