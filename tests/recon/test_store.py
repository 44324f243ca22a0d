"""Tensors that memory has no room for: in files without a name, with room that the disk has promised."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from hwmodel import InputError
from recon.compute.store import Store


def test_no_file_is_ever_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = Store(0, torch.device("cpu"))
    kept = store.empty((3, 4, 5, 6), torch.float32)
    assert os.listdir(tmp_path) == []
    kept.fill_(2)
    assert float(kept.sum()) == 720
    assert kept.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("promised", [True, False])
def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, promised: bool) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if promised:
        monkeypatch.setattr("os.posix_fallocate", full)
    else:  # systems that cannot promise room are written to
        monkeypatch.delattr("os.posix_fallocate")
        monkeypatch.setattr("mmap.mmap", full)
    with pytest.raises(InputError, match=r"4,000 bytes .*No space left.*TMPDIR.*--cache-memory") as refused:
        Store(0, torch.device("cpu")).empty((1000,), torch.float32)
    assert "\n" not in str(refused.value)


def test_a_file_that_was_written_out_holds_what_is_put_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fallocate")
    kept = Store(0, torch.device("cpu")).empty((2**19 + 3,), torch.float32)
    kept[-1] = 5
    assert float(kept.sum()) == 5
