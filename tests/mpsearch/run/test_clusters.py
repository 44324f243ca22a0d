"""Clusters that are running already, started as users do: a scheduler, and workers in processes of their own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from commandline import Command

from mpsearch.run.engines import Engine

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SECONDS = 120  # until a cluster is there


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def started(*lines: tuple[str, ...]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs of this environment, and all that they start; in the end they are gone."""
    here = os.pathsep.join(sys.path)  # where this file's functions are found
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"PYTHONPATH": here}}
    programs = [
        subprocess.Popen([Path(sys.executable).with_name(line[0]), *line[1:]], **quiet)  # type: ignore[call-overload]
        for line in lines
    ]
    try:
        yield programs
    finally:
        ours = [child for one in programs for child in psutil.Process(one.pid).children(recursive=True)]
        for one in (*programs, *ours):
            with_it = psutil.Process(one.pid) if psutil.pid_exists(one.pid) else None
            if with_it is not None:
                with_it.kill()
        for one in programs:
            one.wait()


def answers(address: str) -> bool:
    host, _, port = address.rpartition("//")[2].partition(":")
    with socket.socket() as one:
        return one.connect_ex((host, int(port))) == 0


def waited(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not there():
        assert time.monotonic() < deadline, "the cluster does not start"
        time.sleep(0.2)


@contextmanager
def dask_cluster() -> Iterator[str]:
    """A scheduler and two workers."""
    distributed = pytest.importorskip("distributed")
    address = f"tcp://127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    scheduler = ("dask", "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", "--no-show")
    worker = (
        "dask",
        "worker",
        address,
        "--nworkers",
        "2",
        "--nthreads",
        "1",
        "--no-dashboard",
        "--death-timeout",
        "90",
    )
    with started(scheduler) as (_,):
        waited(lambda: answers(address))
        with started(worker):
            with distributed.Client(address, timeout=SECONDS) as client:
                client.wait_for_workers(2, timeout=SECONDS)
            yield address


@contextmanager
def ray_cluster() -> Iterator[str]:
    """A head that has two CPUs."""
    pytest.importorskip("ray")
    port = str(free_port())
    head = ("ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false")
    with started(head):
        waited(lambda: answers(f"127.0.0.1:{port}"))
        yield f"127.0.0.1:{port}"


CLUSTERS = {"dask": dask_cluster, "ray": ray_cluster}


def dies_once(shared: bytes, marker: str) -> str:
    """The first time its process is killed; then it answers."""
    if marker and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return shared.decode() + str(os.getpid())


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_cluster_that_is_running_finishes_points_and_loses_a_worker(
    backend: str, tiny: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # Ray's clusters want the same token of all who join
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with CLUSTERS[backend]() as address:
        tasks: dict[str, tuple[Any, ...]] = {"a": ("",), "b": (str(tmp_path / "died"),), "c": ("",)}
        found = dict(Engine(backend, 2, 1, address).calls(dies_once, b"x", tasks))
        assert set(found) == set(tasks)
        assert all(text.startswith("x") for text in found.values())
        assert str(os.getpid()) not in {text[1:] for text in found.values()}
        assert (tmp_path / "died").exists()

        quick = ("--steps", 2, "--population", 8, "--generations", 2, "--samples", 32, "--threads", 1)
        source = ("--model", f"{tiny / 'net.py'}:net", "--data", tiny / "data", "--size-budget", 5200)
        assert command("sensitivity", *source, "--out", tmp_path / "one", *quick).code == 0
        assert command("search", tmp_path / "one").code == 0
        shutil.copytree(tmp_path / "one", tmp_path / "many")
        pick = ("--pick", "all:4", "--threads", 1, "--json")
        alone = command("finalize", tmp_path / "one", *pick)
        done = command("finalize", tmp_path / "many", *pick, "--backend", backend, "--scheduler", address)
        assert done.code == 0, done.err
        assert list(json.loads(done.out)) == list(json.loads(alone.out))
        for path in (tmp_path / "one").glob("model-*"):
            assert (tmp_path / "many" / path.name).read_bytes() == path.read_bytes()
