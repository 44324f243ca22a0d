"""One writer a folder: the second is told who is there, or waits; readers never do; a crash is cleared up."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hwmodel import InputError
from hwmodel.files import this_host
from mpsearch.files.folder import RunFolder
from mpsearch.files.lock import LOCK, held_file

HOLD = """
import sys
from pathlib import Path
from mpsearch.files.folder import RunFolder
with RunFolder(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_is_there_or_waits(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    process = holder(folder.path)
    who = f"process {process.pid} on '{socket.gethostname()}'"
    with pytest.raises(InputError, match=f"{folder.path} is in use by {who}: .*--wait") as refused, folder.held():
        pass
    assert "\n" not in str(refused.value)
    notes: list[str] = []
    done = threading.Timer(0.5, lambda: process.communicate(""))
    done.start()
    with folder.held(wait=True, note=notes.append):
        assert process.wait() == 0
        folder.write("kept", "")
    done.join()
    assert notes == [f"{folder.path} is in use by {who}: waiting for it"]
    assert os.listdir(folder.path) == ["kept"]  # and no lock, and no folder that stayed empty


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    process = holder(folder.path)
    process.kill()
    process.communicate()
    assert (folder.path / LOCK).is_file()
    with folder.held():
        pass
    assert [path for path in folder.path.rglob("*") if path.is_file()] == []


def test_folders_that_stay_empty_go_again_if_they_were_made(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "mine")
    with folder.held():
        assert (folder.path / "chosen").is_dir()
    assert os.listdir(tmp_path) == []
    folder.path.mkdir(parents=True)
    with folder.held():
        pass
    assert os.listdir(folder.path) == []


def test_many_writers_take_turns(tmp_path: Path) -> None:
    """Each adds one to a number that it reads, which loses some where two are in at a time."""
    folder = RunFolder(tmp_path / "run")
    with folder.held():
        folder.write("count", "0")

    def add() -> None:
        for _ in range(5):
            with RunFolder(folder.path).held(wait=True, note=lambda line: None):
                count = int(folder.file("count").read_text())
                folder.write("count", str(count + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folder.file("count").read_text() == "20"


def test_what_a_crash_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    (folder.path / "chosen").mkdir(parents=True)
    left = [folder.path / f".mpsearch-{host}-1-00.tmp" for host in (this_host(), "0b")]
    left.append(folder.path / "chosen" / left[0].name)
    for path in left:
        path.write_text("half")
    (folder.path / "mine.tmp").write_text("the user's")
    with folder.held():
        assert not any(path.exists() for path in left)
    assert sorted(os.listdir(folder.path)) == ["chosen", "mine.tmp"]


def test_a_single_file_is_locked_without_disturbing_its_folder(tmp_path: Path) -> None:
    path, gone = tmp_path / ("x" * 255), subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    alive, dead, foreign = (
        tmp_path / f".mpsearch-{host}-{pid}-00.tmp"
        for host, pid in ((this_host(), os.getpid()), (this_host(), gone.pid), ("0b", gone.pid))
    )
    for file in (alive, dead, foreign):
        file.touch()
    with (
        held_file(path, False, print),
        pytest.raises(InputError, match=r"x is in use by process"),
        held_file(path, False, print),
    ):
        pass
    assert sorted(tmp_path.iterdir()) == sorted([alive, foreign])


def test_what_a_lock_says_is_not_believed_blindly(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.held():
        for text in (b"", b"\xff", b"[]", b'{"pid": "x"}', b"[" * 5000, b'{"pid": 1e999, "host": 3}'):
            folder.file(LOCK).write_bytes(text)
            with pytest.raises(InputError, match="in use by another process"), RunFolder(tmp_path).held():
                pass


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/sys").is_dir(), reason="needs a folder nobody can write to")
def test_a_folder_that_cannot_be_written_to() -> None:
    with pytest.raises(InputError, match=r"cannot write to /proc/run .*--out"), RunFolder(Path("/proc/run")).held():
        pass
