"""Samples: whatever a batch looks like, its tensors in one order, the samples first."""

from __future__ import annotations

import pytest
import torch

from hwmodel.errors import InputError
from recon.graph.samples import Samples, named_parts


def test_a_batch_is_a_call() -> None:
    x, y = torch.randn(4, 3), torch.arange(4)
    for batch, args, kwargs in (
        (x, (x,), {}),
        ((x, y), (x, y), {}),
        ([x, y], (x, y), {}),
        (({"image": x, "ids": y},), ({"image": x, "ids": y},), {}),
        ({"x": x, "ids": y}, (), {"x": x, "ids": y}),
    ):
        samples = Samples.of(batch)
        assert len(samples) == 4
        found = samples.call
        assert [type(part) for part in found[0]] == [type(part) for part in args]
        assert named_parts(found).keys() == named_parts((args, kwargs)).keys()
        assert all(value is named_parts((args, kwargs))[name] for name, value in named_parts(found).items())
        assert Samples.of(samples) is samples
    one, other = Samples.of({"x": x, "ids": y}), Samples.of({"ids": y, "x": x})
    assert one.spec == other.spec
    assert all(map(torch.equal, one.leaves, other.leaves))


def test_some_samples_and_batches_of_them() -> None:
    samples = Samples.of((torch.arange(10.0)[:, None], torch.arange(10)))
    assert [leaf.tolist() for leaf in samples[torch.tensor([3, 1])].leaves] == [[[3.0], [1.0]], [3, 1]]
    parts = list(samples.batches(4))
    assert [len(part) for part in parts] == [4, 4, 2]
    for joined in (Samples.join(parts), Samples.join((part.call[0] for part in parts), most=10)):
        assert all(map(torch.equal, joined.leaves, samples.leaves))
    assert len(Samples.join(parts, most=5)) == 5
    taken = []
    Samples.join((taken.append(part) or part for part in parts), most=4)  # a loader may have no end
    assert len(taken) == 1


def test_noise_is_always_the_same() -> None:
    one, other = (Samples.noise((3, 4), (2,), count=5) for _ in range(2))
    assert [tuple(leaf.shape) for leaf in one.leaves] == [(5, 3, 4), (5, 2)]
    assert all(map(torch.equal, one.leaves, other.leaves))


def test_real_numbers_become_single_and_ids_stay() -> None:
    samples = Samples.of((torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.long)))
    assert [leaf.dtype for leaf in samples.single().leaves] == [torch.float32, torch.long]


def test_batches_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="no tensor"):
        Samples.of({})
    with pytest.raises(InputError, match="tensors only, got a str"):
        Samples.of((torch.zeros(2), "train"))
    with pytest.raises(InputError, match=r"samples first, as many in each; got \[2\], \[3\]"):
        Samples.of((torch.zeros(2), torch.zeros(3)))
    with pytest.raises(InputError, match="samples first"):
        Samples.of(torch.zeros(()))
    with pytest.raises(InputError, match="iterable is empty"):
        Samples.join([])
    with pytest.raises(InputError, match="must be alike: the first is"):
        Samples.join([torch.zeros(2), (torch.zeros(2), torch.zeros(2))])
    with pytest.raises(InputError, match="alike beyond the number of samples"):
        Samples.join([torch.zeros(2, 3), torch.zeros(2, 4)])


def test_parts_of_outputs_have_paths() -> None:
    x = torch.zeros(1)
    assert list(named_parts(x)) == [""]
    assert list(named_parts({"boxes": [x, x], "logits": x, "none": None})) == ["boxes.0", "boxes.1", "logits"]
    assert list(named_parts((x, {"a": (x,)}))) == ["0", "1.a.0"]
