"""`--compute` and `--threads`: checked, followed, and part of no key and no file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commandline import Command, refused
from threadpoolctl import threadpool_info

from hwmodel import InputError
from mpsearch.request.compute import ComputeOptions
from mpsearch.request.options import RunOptions
from mpsearch.run.keys import origin_key
from mpsearch.run.place import place, place_name


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits():
        yield
    torch.set_num_threads(before)


def test_threads_are_those_of_torch_and_of_every_pool() -> None:
    before = torch.get_num_threads()
    assert place(ComputeOptions(compute="cpu")) == torch.device("cpu")
    assert torch.get_num_threads() == before
    place(ComputeOptions(compute="cpu", threads=3))
    assert torch.get_num_threads() == 3
    assert {pool["num_threads"] for pool in threadpool_info()} <= {1, 3}


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    assert place(ComputeOptions()) == torch.device("cuda")
    assert place_name(place(ComputeOptions(compute="cuda:0"))) == "cuda:0 (H100)"
    with pytest.raises(InputError, match="there is one GPU, cuda:0"):
        place(ComputeOptions(compute="cuda:1"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert place_name(place(ComputeOptions())) == "cpu"
    with pytest.raises(InputError, match="no GPU that torch can use; --compute cpu"):
        place(ComputeOptions(compute="cuda"))


def test_neither_is_in_a_key_or_a_file(tmp_path: Path) -> None:
    plain, other = (RunOptions(size_budget_bytes=10, **more) for more in ({}, {"compute": "cuda:1", "threads": 2}))
    assert origin_key(plain) == origin_key(other)
    assert plain.to_toml() == other.to_toml()
    (tmp_path / "config.toml").write_text(other.to_toml())
    assert RunOptions.from_toml(tmp_path / "config.toml") == plain
    assert RunOptions.from_toml(tmp_path / "config.toml", ComputeOptions(compute="cuda:1", threads=2)) == other
    (tmp_path / "config.toml").write_text(other.to_toml() + "threads = 3\n")
    with pytest.raises(InputError, match="unknown key 'threads'"):
        RunOptions.from_toml(tmp_path / "config.toml")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--compute", "tpu"), ("--compute must be cpu, cuda", "'tpu'")),
        (("--compute", "cuda:x"), ("--compute must be",)),
        (("--compute", "cuda:99"), ("--compute cuda:99", "--compute cpu")),
        (("--threads", "-1"), ("--threads must be", "'-1'")),
        (("--threads", "many"), ("--threads must be",)),
        (("--threads", "99999"), ("--threads must be",)),
    ],
)
def test_wrong_flags_are_one_line(flags: tuple[str, ...], parts: tuple[str, ...], command: Command) -> None:
    refused(command("reconstruct", "--bits", "W4", *flags), *parts)


def test_a_run_folder_is_gone_on_with_elsewhere(tmp_path: Path, command: Command) -> None:
    (tmp_path / "config.toml").write_text(RunOptions(size_budget_bytes=10**6).to_toml())
    for step in ("search", "finalize"):
        refused(command(step, tmp_path, "--compute", "cuda:99"), "--compute cuda:99")
