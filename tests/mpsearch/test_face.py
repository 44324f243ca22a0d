"""mpsearch from Python: a network and samples in memory, a front that is an object, finished models."""

from __future__ import annotations

import gc
from html import escape
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hwmodel
import mpsearch
from hwmodel import BudgetError, InputError
from mpsearch.tasks.regression import TASK as REGRESSION

QUICK = {"population": 16, "generations": 4, "samples": 32}
DEVICE = Path(hwmodel.__file__).parent / "devices" / "npu-int4.toml"


def network(outputs: int = 5) -> nn.Module:
    torch.manual_seed(0)
    body = [
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3),
        nn.ReLU(),
    ]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, outputs)).eval()
    model[-1].weight.data *= 50  # a network that is sure of something
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(64, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def front(images: Tensor) -> mpsearch.Front:
    model = network()
    labels = model(images).argmax(1)
    batches = DataLoader(TensorDataset(images[32:], labels[32:]), 8)
    return mpsearch.search(
        model, DataLoader(images[:32], 8), "4kB", validation=batches, edges="free", wbits=(2, 3), **QUICK
    )


def test_a_front_is_a_sequence_of_points(front: mpsearch.Front) -> None:
    points = list(front)
    assert len(points) == len(front) > 4
    losses = [point.loss_nats for point in points]
    sizes = [point.costs["size_bytes"] for point in points]
    assert losses == sorted(losses, reverse=True)
    assert sizes == sorted(sizes)
    chosen = front.pick()
    assert chosen == front[chosen.index] == front.pick(chosen.index)
    assert chosen.costs["size_bytes"] <= 4000
    assert (
        max((point for point in points if point.costs["size_bytes"] <= 4000), key=lambda point: point.index) == chosen
    )


def test_it_shows_itself(front: mpsearch.Front, tmp_path: Path) -> None:
    assert f"Front of {len(front)} configurations of Sequential" in repr(front)
    shown = front._repr_html_()
    assert shown.startswith("<iframe ")
    assert shown.partition("</iframe>")[2].count("<tr>") == repr(front).count("\n")  # for where frames are left out
    assert front.plot(tmp_path / "front.png").stat().st_size > 10_000
    written = front.explore(tmp_path / "front.html").read_text()
    assert f'srcdoc="{escape(written)}"' in shown


def test_a_finished_model_takes_and_gives_what_the_model_does(
    front: mpsearch.Front, images: Tensor, tmp_path: Path
) -> None:
    finished = front.finish("budget")
    assert finished.config == front.pick("budget").config
    assert finished.size_bytes == front.pick("budget").costs["size_bytes"] == finished.path.stat().st_size
    assert finished.metrics["float"]["top1"] == 100.0
    assert finished.metrics["finished"]["kl"] < finished.metrics["plain"]["kl"]
    saved = finished.save(tmp_path / "model.safetensors")
    again = mpsearch.load_packed(saved, model=network())
    assert torch.equal(again(images), finished.model(images))
    assert "top-1" in repr(finished)


def test_steps_in_a_folder_are_gone_on_from(images: Tensor, tmp_path: Path) -> None:
    asked = (network(2), [images], {"size": "4kB", "mean bits": 6})
    first = mpsearch.search(*asked, task=REGRESSION, folder=tmp_path, wbits=(2, 4, 8), **QUICK)
    cache = tmp_path / "sensitivity.safetensors"
    written = cache.stat().st_mtime_ns
    second = mpsearch.search(*asked, task="regression", folder=tmp_path, wbits=(2, 4, 8), **QUICK)
    assert cache.stat().st_mtime_ns == written
    assert first.record.to_json() == second.record.to_json()
    assert "rmse_to_float" in second.finish("knee").metrics["finished"]


def test_a_finished_model_outlives_its_front(images: Tensor, tmp_path: Path) -> None:
    options = {"device": DEVICE, "wbits": (4, 8), "abits": (8,), "edges": "free", **QUICK}
    finished = mpsearch.search(network(), [images], "4kB", **options).finish("knee")
    gc.collect()
    assert finished.save(tmp_path / "model.safetensors").stat().st_size == finished.size_bytes
    folder = finished.path.parent
    del finished
    gc.collect()
    assert not folder.exists()


def test_what_is_wrong_is_said(images: Tensor, front: mpsearch.Front) -> None:
    with pytest.raises(InputError, match="no budget 'bytes'; there are size"):
        mpsearch.search(network(), [images], {"bytes": 3})
    with pytest.raises(InputError, match="search has no option 'bits'"):
        mpsearch.search(network(), [images], "4kB", bits=3)
    with pytest.raises(InputError, match="calibration must be an iterable of batches, such as a DataLoader; got a int"):
        mpsearch.search(network(), 3, "4kB")  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="the smallest file"):
        mpsearch.search(network(), [images], "100B", **QUICK)
    with pytest.raises(InputError, match="one point at a time"):
        front.finish("all:4")
