"""Layers that read means over maps: the maps are found, and say more about the layer's inputs than the means do."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from captured import of_images, task_of
from torch import Tensor, nn

from recon.compute.arithmetic import mixed_order
from recon.compute.store import Store
from recon.fit.compensation import compensated
from recon.graph.granularity import regroup
from recon.graph.patterns import relu_cap, with_pooled_maps
from recon.statistics.moments import BATCH, InputMoments, gather_moments


class Classifier(nn.Module):
    def __init__(self, pool: str) -> None:
        super().__init__()
        self.pool, self.average, self.dropout = pool, nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2)
        self.conv, self.linear = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        if self.pool == "module":
            x = torch.flatten(self.average(x), 1)
        elif self.pool == "mean":
            x = x.mean([2, 3])
        elif self.pool == "window":
            x = F.avg_pool2d(x, 4)
            x = x.view(x.size(0), -1)
        elif self.pool == "largest":
            x = x.amax([2, 3])
        return self.linear(self.dropout(x))


@pytest.mark.parametrize("pool", ["module", "mean", "window"])
def test_the_map_that_a_classifier_averages_is_found(pool: str) -> None:
    net, x = of_images(Classifier(pool), (3, 6, 6)), torch.randn(5, 3, 6, 6)
    before = str(net.module.graph)
    module, maps = with_pooled_maps(net.module, ["conv", "linear"])
    seen: list[Tensor] = []
    assert list(maps) == ["linear"]
    maps["linear"].register_forward_hook(lambda _, __, z: seen.append(z))
    assert torch.equal(module(x)[0], net.model(x))
    assert torch.equal(seen[0], net.layer("conv")(x).relu())
    assert str(net.module.graph) == before


def test_no_map_where_nothing_is_averaged() -> None:
    assert with_pooled_maps(of_images(Classifier("largest"), (3, 6, 6)).module, ["conv", "linear"])[1] == {}


RELUS: dict[str, tuple[nn.Module, float | None]] = {
    "relu": (nn.ReLU(), math.inf),
    "in place": (nn.ReLU(inplace=True), math.inf),
    "relu6": (nn.ReLU6(), 6.0),
    "hardtanh": (nn.Hardtanh(0.0, 3.0), 3.0),
    "both sides": (nn.Hardtanh(-1.0, 3.0), None),
    "leaky": (nn.LeakyReLU(), None),
    "smooth": (nn.SiLU(), None),
}


@pytest.mark.parametrize("kind", RELUS)
def test_where_a_relu_cuts_off(kind: str) -> None:
    activation, cap = RELUS[kind]
    net = of_images(nn.Sequential(nn.Conv2d(3, 4, 1), activation), (3, 4, 4))
    caps = [relu_cap(node) for node in net.module.graph.nodes if node.op == "call_function"]
    assert [found for found in caps if found is not None] == ([] if cap is None else [cap])


class Clamped(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Conv2d(3, 4, 1), how

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        return {"both": lambda: z.clamp(0, 4), "keyword": lambda: torch.clamp(z, min=0.0, max=4.0)}[self.how]()


@pytest.mark.parametrize("how", ["both", "keyword"])
def test_clamps_are_relus_too(how: str) -> None:
    net = of_images(Clamped(how), (3, 4, 4))
    assert [relu_cap(node) for node in net.module.graph.nodes if node.op == "call_function"] == [4.0]


def test_positions_tell_the_covariance_of_means_that_few_images_leave_open() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(40, 40) * torch.linspace(0.1, 2, 40)
    maps = torch.einsum("jk,nkhw->njhw", mixing, torch.randn(80, 40, 5, 5))
    truth = mixing @ mixing.T / 25  # of means over 25 independent positions

    def missed(pooled: Tensor | None) -> float:
        moments = InputMoments()
        for index in (slice(0, 40), slice(40, 80)):
            part = maps[index].mean((2, 3)).T[None]
            moments.add(part, None, None if pooled is None else pooled[index])
        return float((moments.hessian()[0] - truth).norm() / truth.norm())

    assert missed(maps) < 0.5 * missed(None)
    assert missed(maps[:, :20]) == missed(None)  # a map of another width than the inputs, as before a grid of means


def test_cache_and_correction_use_the_maps() -> None:
    torch.manual_seed(0)
    net, x = regroup(of_images(Classifier("module"), (3, 6, 6)), "network"), torch.randn(16, 3, 6, 6)

    def by_hand(maps: bool) -> Tensor:
        moments = InputMoments()
        for pick in torch.split(mixed_order(x), BATCH):
            pooled = net.layer("conv")(x[pick]).relu()
            moments.add(pooled.mean((2, 3)).T[None], None, pooled if maps else None)
        return moments.hessian()

    store = Store(2**30, torch.device("cpu"))
    with torch.no_grad():
        with_maps = by_hand(maps=True)
        apart = (by_hand(maps=False) - with_maps).norm()
        of_cache = gather_moments(net.module, {"linear": net.layer("linear")}, [x])["linear"].hessian()
        of_start = compensated(task_of(net, x, x, store, early_stopping=False), "linear")[0].hessian()
        assert max((of_cache - with_maps).norm(), (of_start - with_maps).norm()) < 0.1 * apart  # bfloat16
