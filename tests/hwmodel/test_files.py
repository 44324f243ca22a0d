"""Files are replaced whole: what fails in the middle leaves what was there, and nothing beside it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from hwmodel import InputError
from hwmodel.files import TEMPORARY, leftovers, this_host, write_whole

OPERATIONS = ("open", "fsync", "replace")


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"one", b" two")
    assert path.read_bytes() == b"one two"
    write_whole(path)
    assert path.read_bytes() == b""
    assert os.listdir(tmp_path) == ["file"]


def test_names_as_long_as_names_may_be(tmp_path: Path) -> None:
    write_whole(tmp_path / ("x" * 255), b"one")
    assert os.listdir(tmp_path) == ["x" * 255]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOENT])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, number: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"precious")

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    where = "pathlib.Path.open" if operation == "open" else f"os.{operation}"
    with monkeypatch.context() as patch:
        patch.setattr(where, fails)
        with pytest.raises(InputError, match=r"cannot write .*file \(.*\); ") as refused:
            write_whole(path, b"new")
    assert "\n" not in str(refused.value)
    assert ("room" in str(refused.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupt_leaves_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


def test_file_and_folder_reach_the_disk_in_the_right_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    fsync, replace = os.fsync, os.replace

    def flushed(handle: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr("os.fsync", flushed)
    monkeypatch.setattr("os.replace", lambda *names: order.append("name") or replace(*names))
    write_whole(tmp_path / "file", b"new")
    assert order == ["file", "name", "folder"]


def test_what_a_crash_left_is_known_by_its_name(tmp_path: Path) -> None:
    names = [f".mpsearch-{this_host()}-12345-0123456789ab.tmp", "file.tmp", ".mpsearch-x.tmp", "model.safetensors"]
    for name in names:
        (tmp_path / name).touch()
    assert list(leftovers(tmp_path)) == [(tmp_path / names[0], this_host(), 12345)]
    assert TEMPORARY.fullmatch(names[0])
    assert list(leftovers(tmp_path / "none")) == []
