"""Layers that read means over maps: the maps are found, and say more about the layer's inputs than the means do."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from recon.compute.arithmetic import mixed_order
from recon.compute.store import Store
from recon.fit.correction import corrected
from recon.fit.task import UnitTask
from recon.graph.patterns import with_pooled_maps
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
    traced = fx.symbolic_trace(Classifier(pool).eval())
    before, x = str(traced.graph), torch.randn(5, 3, 6, 6)
    module, maps = with_pooled_maps(traced, ["conv", "linear"])
    seen: list[Tensor] = []
    assert list(maps) == ["linear"]
    maps["linear"].register_forward_hook(lambda _, __, z: seen.append(z))
    assert torch.equal(module(x), traced(x))
    assert torch.equal(seen[0], traced.conv(x).relu())
    assert str(traced.graph) == before


def test_no_map_where_nothing_is_averaged_or_nothing_is_traced() -> None:
    assert with_pooled_maps(fx.symbolic_trace(Classifier("largest")), ["conv", "linear"])[1] == {}
    module = Classifier("mean")
    assert with_pooled_maps(module, ["linear"]) == (module, {})


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
    module, x = fx.symbolic_trace(Classifier("module").eval()), torch.randn(16, 3, 6, 6)

    def by_hand(maps: bool) -> Tensor:
        moments = InputMoments()
        for pick in torch.split(mixed_order(x), BATCH):
            pooled = module.conv(x[pick]).relu()
            moments.add(pooled.mean((2, 3)).T[None], None, pooled if maps else None)
        return moments.hessian()

    with torch.no_grad(), Store(2**30, torch.device("cpu")) as store:
        with_maps = by_hand(maps=True)
        apart = (by_hand(maps=False) - with_maps).norm()
        of_cache = gather_moments(module, {"linear": module.linear}, x)["linear"].hessian()
        other = copy.deepcopy(module)
        layers, float_layers = ({"linear": made.linear} for made in (module, other))
        generator = torch.Generator()
        task = UnitTask("unit", module, layers, x, other, float_layers, x, store, None, {}, False, generator)
        of_start = corrected(task, "linear")[0].hessian()
        assert max((of_cache - with_maps).norm(), (of_start - with_maps).norm()) < 0.1 * apart  # bfloat16
