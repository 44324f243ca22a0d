"""Layers, blocks, stages, network: the same function in other units, each of them reconstructed."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from captured import of_images, unit_by_unit
from families import small
from torch import Tensor, nn

from hwmodel import BitConfig, InputError, Precision
from recon.compute import store as store_module
from recon.compute.store import Store
from recon.graph.granularity import regroup
from recon.reconstruct import reconstruct
from recon.settings import Settings


def test_stages_are_runs_of_blocks_of_one_resolution() -> None:
    _, net = small("resnet")
    stages = regroup(net, "stage")
    assert [unit.name for unit in stages.units] == [
        "conv1", "layer1.0", "layer2.0 … layer2.1", "layer3.0", "layer4.0", "fc",
    ]  # fmt: skip
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for name in ("layer", "stage", "network"):
            y = unit_by_unit(regroup(net, name), x)[""]  # type: ignore[arg-type]
            assert torch.allclose(y, net.model(x), atol=1e-5)
    assert len(regroup(net, "layer").units) == len(net.table)
    assert regroup(net, "block") is net


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.two(torch.relu(self.one(x))))
        return self.head(4 * x.mean((2, 3)))


@pytest.mark.parametrize(
    ("recipe", "granularity"),
    [
        *product(["ours", "qdrop"], ["layer", "block", "stage", "network"]),
        *product(["brecq"], ["layer", "block", "stage"]),
    ],
)
def test_errors_fall_at_every_granularity(recipe: str, granularity: str) -> None:
    torch.manual_seed(0)
    net, x = of_images(Small(), (3, 12, 12)), torch.randn(64, 3, 12, 12)
    config = BitConfig.uniform(net.table.names, Precision(2, 7))
    made = {"ours": Settings(steps=60), "qdrop": Settings(steps=60, dropped=0.5), "brecq": Settings.brecq(200)}[recipe]
    settings = Settings(**{name: getattr(made, name) for name in Settings.__slots__} | {
        "granularity": granularity, "batch": 16, "code_rate": 0.03 if recipe == "brecq" else 1e-3,
    })  # fmt: skip
    reports = reconstruct(net, x, config, settings).reports
    assert [report.block for report in reports] == [unit.name for unit in regroup(net, settings.granularity).units]
    assert sum(report.loss_after for report in reports) < 0.95 * sum(report.loss_before for report in reports)


def test_files_and_memory_give_the_same_bits() -> None:
    torch.manual_seed(0)
    net, x = of_images(Small(), (3, 12, 12)), torch.randn(40, 3, 12, 12)
    config = BitConfig.uniform(net.table.names, Precision(2, 4))
    found = [reconstruct(net, x, config, Settings(steps=5, memory_bytes=limit)).layers for limit in (0, 2**30)]
    for name in net.table.names:
        assert torch.equal(found[0].weights[name].codes, found[1].weights[name].codes)
        assert torch.equal(found[0].weights[name].grid.scale, found[1].weights[name].grid.scale)
    assert found[0].inputs == found[1].inputs


def test_a_store_keeps_large_tensors_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    in_files: list[int] = []
    mapped = store_module._mapped
    monkeypatch.setattr(store_module, "_mapped", lambda size: in_files.append(size) or mapped(size))
    store = Store(4 * 1000, torch.device("cpu"))
    store.empty((250,), torch.float32)
    assert in_files == []
    large = store.empty((251,), torch.float32)
    assert in_files == [4 * 251]
    large.fill_(3)
    assert float(large.sum()) == 753
    doubled, ids = store.map(lambda batch, ids: (2 * batch, ids + 1), [torch.arange(300.0)[:, None], torch.arange(300)])
    assert torch.equal(ids, torch.arange(1, 301))
    assert torch.equal(doubled, 2 * torch.arange(300.0)[:, None])


@pytest.mark.parametrize("limit", [0, 2**30])
def test_a_store_keeps_maps_as_they_are_computed(limit: int) -> None:
    x = torch.randn(70, 3, 4, 5)
    store = Store(limit, torch.device("cpu"))
    (kept,) = store.map(lambda x: (x.relu(),), [x])
    assert torch.equal(kept, x.relu())
    assert kept.is_contiguous(memory_format=torch.channels_last)
    assert kept[torch.tensor([3, 1])].is_contiguous(memory_format=torch.channels_last)


def test_settings_name_what_they_take() -> None:
    with pytest.raises(InputError, match="granularity must be one of layer, block, stage, network"):
        Settings(granularity="model")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="share"):
        Settings(dropped=1.0)
