"""Iterables of batches from the user's code: what is inputs, what is targets, and how many are read."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mpsearch.sources.data
from hwmodel.errors import InputError
from mpsearch.sources.batches import positional_inputs
from mpsearch.sources.data import DataSource, load_data

X, IDS, Y = torch.rand(40, 1, 6), torch.arange(200).view(40, 5), torch.arange(40)


def _load(made: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> DataSource:
    monkeypatch.setattr(mpsearch.sources.data, "call_factory", lambda reference: made)
    settings = {"calib_samples": 24, "val_samples": None, "seed": 0, "input_size": None, "normalization": None}
    return load_data("mine.py:data", **(settings | options))  # type: ignore[arg-type]


def _in(values: Any, size: int = 8) -> Iterator[Any]:
    for start in range(0, 40, size):
        part = slice(start, start + size)
        yield torch.utils._pytree.tree_map(operator.itemgetter(part), values)


@pytest.mark.parametrize(
    ("inputs", "validation", "labelled"),
    [
        (X, (X, Y), True),
        (X, [X, Y], True),
        (X, X, False),
        ((X,), (X, Y), True),
        ((X, IDS), (X, IDS), False),
        ((X, IDS), ((X, IDS), Y), True),
        ((X, IDS), [X, IDS, Y], True),
        ({"ids": IDS, "x": X}, {"x": X, "ids": IDS}, False),
        ({"ids": IDS, "x": X}, ({"x": X, "ids": IDS}, Y), True),
        (IDS, (IDS, {"class": Y, "box": X[:, 0, :4]}), True),
        (IDS, (IDS, (Y, X)), True),
    ],
)
def test_structure_says_what_is_inputs(
    inputs: Any, validation: Any, labelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _load((_in(inputs), _in(validation)), monkeypatch)
    assert data.val is not None
    assert (len(data.calib), len(data.val), data.val.labelled) == (24, 40, labelled)
    assert data.calib.stored.spec == data.val.stored.spec
    flat = torch.utils._pytree.tree_leaves(inputs)
    assert all(torch.equal(a, b) for a, b in zip(data.val.stored.leaves, flat, strict=True))
    assert all(torch.equal(a, b[:24]) for a, b in zip(data.calib.stored.leaves, flat, strict=True))
    assert data.source.endswith(
        f": 24 calibration samples, 40 validation samples{'' if labelled else ', without labels'}"
    )
    if labelled and isinstance(validation[-1], Tensor):
        assert torch.equal(data.val.targets, Y)


def test_targets_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [{"boxes": torch.rand(index % 3, 4)} for index in range(40)]
    for wrap in (list, tuple):
        batches = [(X[i : i + 8], wrap(boxes[i : i + 8])) for i in range(0, 40, 8)]
        val = _load((_in(X), batches), monkeypatch).val
        assert val is not None
        assert val.targets == boxes
    numbers = _load((_in(X), [(X, list(range(40)))]), monkeypatch).val
    assert numbers is not None
    assert torch.equal(numbers.targets, Y)
    arrays = _load((_in(X), [(X.numpy(), Y.numpy())]), monkeypatch).val
    assert arrays is not None
    assert torch.equal(arrays.targets, Y)


def test_no_more_is_read_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def endless() -> Iterator[Tensor]:
        while True:
            read.append(1)
            yield X[:8]

    data = _load((endless(), endless()), monkeypatch, val_samples=12)
    assert data.val is not None
    assert (len(data.calib), len(data.val), len(read)) == (24, 12, 3 + 2)
    read.clear()
    data = _load((endless(), None), monkeypatch)
    assert data.val is not None
    assert (len(data.calib), len(data.val), len(read)) == (24, 16, 5)


def test_without_validation_a_part_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _load((_in(X), None), monkeypatch, calib_samples=512)
    assert data.val is not None
    assert (len(data.calib), len(data.val), data.val.labelled) == (24, 16, False)
    assert data.source.endswith("16 validation samples held out of the same, without labels")
    assert torch.equal(torch.cat([*data.calib.stored.leaves, *data.val.stored.leaves]), X)
    loader = DataLoader(TensorDataset(X, Y), batch_size=7)
    labelled = _load(loader, monkeypatch, takes=1)
    assert labelled.val is not None
    assert torch.equal(labelled.val.targets, Y[24:])
    assert _load(([X[:16]], None), monkeypatch).val is None


def test_a_loader_of_pairs_calibrates_a_network_of_one_input(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=8)
    data = _load((loader, loader), monkeypatch, takes=1)
    assert data.val is not None
    assert torch.equal(data.calib.stored.leaves[0], X[:24])
    assert torch.equal(data.val.targets, Y)
    assert len(_load((loader, None), monkeypatch, takes=2).calib.stored.leaves) == 2


def test_numbers_become_what_networks_take(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"a": X.double().requires_grad_(), "b": IDS.int(), "c": np.ones((40, 2), np.float64), "d": Y > 3}
    leaves = _load(([batch], None), monkeypatch).calib.stored.leaves
    assert [leaf.dtype for leaf in leaves] == [torch.float32, torch.int32, torch.float32, torch.bool]
    assert not any(leaf.requires_grad for leaf in leaves)


def _raising() -> Iterator[Tensor]:
    yield X[:8]
    raise OSError("disk gone\nsecond line")


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (([], None), "there are no batches"),
        (([X[:8]], None), "at least 16 calibration samples are needed, got 8"),
        (([X, X[:, :, :3]], [X]), "alike"),
        (([X, IDS.float()], [X]), "alike"),
        (([X, {"x": X}], None), "batches must be alike"),
        (([X * float("nan")], None), "a batch has NaN values"),
        ((["text"], None), "a batch must hold tensors only, got a str"),
        (([(X, 3)], None), "a batch must hold tensors only, got a int"),
        (([(X, IDS[:3])], None), "as many in each"),
        (([X], [(X, Y[:3])]), "targets must be tensors with as many rows as samples"),
        (([X], [(X, "cat")]), "targets must be tensors"),
        (([X], [{"x": X}]), "a validation batch must be"),
        (([X], [(X, Y), X]), "some batches have targets, others none"),
        ((_raising(), None), r"calibration: the iterable raised OSError: disk gone$"),
        (([X], _raising()), r"validation: the iterable raised OSError: disk gone$"),
        ((3, None), "two iterables of batches"),
        (({"x": X}, None), "two iterables of batches"),
        (([X], 3), "two iterables of batches"),
        ([X, X, X, X], "two iterables of batches"),
    ],
)
def test_batches_that_will_not_do(made: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=text) as caught:
        _load(made, monkeypatch, calib_samples=60)
    assert "\n" not in str(caught.value)


def test_how_many_arguments_a_network_takes() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
            return x

    class Any_(nn.Module):
        def forward(self, *x: Tensor) -> Tensor:
            return x[0]

    assert positional_inputs(nn.Linear(2, 2)) == 1
    assert positional_inputs(nn.DataParallel(Two())) == 2
    assert positional_inputs(Any_()) is None


def test_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\ndef data():\n"
        "    return (torch.rand(8, 3) for _ in range(9)), iter([(torch.rand(5, 3), [1] * 5)])\n"
    )
    settings: dict[str, Any] = {"input_size": None, "normalization": None}
    data = load_data(f"{tmp_path}/mine.py:data", calib_samples=20, val_samples=None, seed=0, **settings)
    assert data.val is not None
    assert (len(data.calib), len(data.val), data.val.targets.tolist()) == (20, 5, [1] * 5)
