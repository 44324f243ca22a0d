"""Calls spread over processes: every result comes, what is shared is sent once, and who dies takes nobody along."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from commandline import Command

from hwmodel import InputError
from mpsearch.request.compute import SpreadOptions
from mpsearch.run.engines import AGAIN, Engine, Lost
from mpsearch.run.sent import engine_of


@pytest.fixture(autouse=True)
def _sent_by_value() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def joined(shared: bytes, text: str) -> tuple[str, int]:
    return shared.decode() + text, os.getpid()


def dies(shared: bytes, marker: str, times: int) -> str:
    """Dies as often as asked, then answers."""
    died = len(list(Path(marker).parent.glob(f"{Path(marker).name}-*")))
    if died < times:
        Path(f"{marker}-{died}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return f"lived after {died}"


def fails(shared: bytes, number: int) -> int:
    if number == 2:
        raise InputError("two is not wanted")
    return number


def results(engine: Engine, call: Any, tasks: dict[str, tuple[Any, ...]], shared: bytes = b"s") -> dict[str, Any]:
    return dict(engine.calls(call, shared, tasks))


BACKENDS = ["loky", pytest.param("dask", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.slow)]


def needs(backend: str) -> None:
    if backend == "dask":
        pytest.importorskip("distributed")
    elif backend == "ray":  # which has a copy of cloudpickle of its own
        pytest.importorskip("ray").cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.filterwarnings("ignore")  # of engines that start and stop servers
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_result_comes_and_who_dies_takes_nobody_along(backend: str, tmp_path: Path) -> None:
    needs(backend)
    engine = Engine(backend, 2, 1)
    tasks: dict[str, tuple[Any, ...]] = {name: (str(tmp_path / name), 0) for name in "abc"}
    tasks["once"] = str(tmp_path / "once"), 1
    tasks["always"] = str(tmp_path / "always"), 99
    found = results(engine, dies, tasks)
    lost = found.pop("always")
    assert isinstance(lost, Lost)
    assert lost.reason
    assert found == {**dict.fromkeys("abc", "lived after 0"), "once": "lived after 1"}
    started = len(list(tmp_path.glob("always-*")))  # Dask counts workers that died while it waited for its turn there
    assert started == 1 + AGAIN or (backend == "dask" and 1 <= started <= 1 + AGAIN)


def test_workers_are_kept_and_the_shared_part_is_sent_once() -> None:
    found = results(Engine("loky", 2, 1), joined, {str(i): (str(i),) for i in range(6)}, b"x" * 10)
    assert {name: text for name, (text, _) in found.items()} == {str(i): "x" * 10 + str(i) for i in range(6)}
    workers = {pid for _, pid in found.values()}
    assert 1 <= len(workers) <= 2
    assert os.getpid() not in workers


def grows(shared: bytes, number: int) -> int:
    sys.modules["kept"] = [sys.modules.get("kept"), bytearray(b"x") * 400_000_000 if number == 1 else b""]  # type: ignore[assignment]
    time.sleep(1.1)  # loky looks once a second
    return os.getpid()


def test_a_worker_that_has_grown_is_kept() -> None:
    found = results(Engine("loky", 1, 1), grows, {str(i): (i,) for i in range(4)})
    assert len(set(found.values())) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_call_raises_is_raised_here(backend: str) -> None:
    needs(backend)
    with pytest.raises(InputError, match="two is not wanted"):
        results(Engine(backend, 2, 1), fails, {str(i): (i,) for i in range(4)})


ORPHANS = """
import os, sys, time
from mpsearch.run.engines import Engine
sys.path.insert(0, sys.argv[1])
def call(shared, seconds):
    import os, time
    open(shared.decode() + "/" + str(os.getpid()), "w").close()
    time.sleep(seconds)
if __name__ == "__main__":
    list(Engine("loky", 2, 1).calls(call, sys.argv[1].encode(), {"a": (600,), "b": (600,)}))
"""


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "orphans.py").write_text(ORPHANS)
    parent = subprocess.Popen([sys.executable, tmp_path / "orphans.py", str(tmp_path)], stderr=subprocess.DEVNULL)
    while len(workers := [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60  # they look every half second, and would sleep for ten minutes
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_threads_are_divided_among_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert engine_of(SpreadOptions(workers=4), 64) == Engine("loky", 4, 4)
    assert engine_of(SpreadOptions(workers=64), 3) == Engine("loky", 3, 5)
    assert engine_of(SpreadOptions(workers=4, threads=2), 64) == Engine("loky", 4, 2)
    assert engine_of(SpreadOptions(backend="dask", scheduler="tcp://10.0.0.1:8786"), 64).workers == 16


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"workers": -1}, "--workers must be"),
        ({"workers": 9999}, "--workers must be"),
        ({"backend": "spark"}, "--backend must be one of loky, dask, ray"),
        ({"scheduler": "tcp://x:1"}, "--backend dask or ray"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        SpreadOptions(**options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "address"), [("dask", "tcp://127.0.0.1:9"), ("ray", "127.0.0.1:9"), ("ray", "nonsense")]
)
def test_a_scheduler_that_does_not_answer_is_named(backend: str, address: str) -> None:
    needs(backend)
    with pytest.raises(InputError, match=rf"no {backend} scheduler answers at {address} "):
        results(Engine(backend, 1, 1, address), fails, {"0": (0,)})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_finished_points_are_the_same_bytes_whoever_finishes_them(
    backend: str, tiny: Path, tmp_path: Path, command: Command
) -> None:
    needs(backend)
    quick = ("--steps", 2, "--population", 8, "--generations", 2, "--samples", 32, "--threads", 1)
    source = ("--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data", "--size-budget", 5200)
    assert command("sensitivity", *source, "--out", tmp_path / "one", *quick).code == 0
    assert command("search", tmp_path / "one").code == 0
    shutil.copytree(tmp_path / "one", tmp_path / "many")
    alone = command("finalize", tmp_path / "one", "--pick", "all:4", "--threads", 1, "--json")
    spread = ("--workers", 2, "--backend", backend, "--threads", 1)
    done = command("finalize", tmp_path / "many", "--pick", "all:4", *spread, "--json")
    assert done.code == 0, done.err
    assert list(json.loads(done.out)) == list(json.loads(alone.out))
    models = sorted(path.name for path in (tmp_path / "one").glob("model-*"))
    assert len(models) == 4
    for name in models:
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    again = command("finalize", tmp_path / "many", "--pick", "all:4", *spread)
    assert "workers" not in again.err  # all are current


@pytest.mark.slow
def test_sensitivity_is_the_same_bytes_whoever_measures_it(tiny: Path, tmp_path: Path, command: Command) -> None:
    quick = ("--samples", 40, "--threads", 1, "--wbits", "2,4,8", "--size-budget", 5200)
    source = ("--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data")
    found = set()
    for workers in (0, 1, 3):
        out = tmp_path / str(workers)
        done = command("sensitivity", *source, *quick, "--out", out, "--workers", workers)
        assert done.code == 0, done.err
        assert ("batches by" in done.err) == (workers > 0)
        found.add((out / "sensitivity.safetensors").read_bytes())
    assert len(found) == 1


LEFT = """
import tempfile
from mpsearch.run.engines import _start_tracker
_start_tracker()
from joblib.externals.loky.backend import resource_tracker
folder = tempfile.mkdtemp()
resource_tracker.register(folder, "folder")  # as workers do that are killed before they say that it is gone
print(folder)
"""


def test_what_killed_workers_leave_is_removed_without_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert not Path(done.stdout.strip()).exists()
    assert os.environ.get("PYTHONWARNINGS", "") != "ignore:resource_tracker"
