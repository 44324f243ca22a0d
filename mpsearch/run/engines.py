"""Calls spread over processes of this machine (joblib's loky) or over machines (Dask, Ray), by engines that exist.

What all calls share is sent once to each process, results come back as they are done, and a call whose process dies is
made again twice; then it is named, and the others go on.
"""

from __future__ import annotations

import importlib
import os
import queue
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from hwmodel import InputError

AGAIN = 2  # times that a call is made again whose process died
WATCH_SECONDS = 0.5
CONNECT_SECONDS = 10
# A module's function of the shared bytes and of a call's own arguments.
Call = Callable[..., Any]
_shared: list[bytes] = []  # in a worker of this machine


@dataclass(frozen=True, slots=True)
class Lost:
    """What there is instead of the result of a call whose process died again and again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Engine:
    """Where calls are made: by `workers` processes of `threads` threads, here or where a `scheduler` has them."""

    backend: str
    workers: int
    threads: int
    scheduler: str | None = None

    def calls(self, call: Call, shared: bytes, tasks: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
        """Name and result of each of the `tasks`, as they are done; a result may be `Lost`.

        Raises InputError where the engine is not installed or cannot be reached, and what a call raises.
        """
        return {"loky": _loky, "dask": _dask, "ray": _ray}[self.backend](self, call, shared, tasks)


def _loky(engine: Engine, call: Call, shared: bytes, tasks: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
    """A pool of one process for each worker, so that who dies takes nobody along."""
    from joblib.externals.loky import ProcessPoolExecutor

    _start_tracker()
    environment = {f"{name}_NUM_THREADS": str(engine.threads) for name in ("OMP", "MKL", "OPENBLAS")}
    workers: dict[ProcessPoolExecutor, int] = {}  # each with its process id
    free: queue.SimpleQueue[ProcessPoolExecutor | None] = queue.SimpleQueue()
    starting, stopping = threading.Lock(), threading.Event()

    def started() -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(1, initializer=_begin, initargs=(shared, os.getpid()), env=environment)
        with starting:  # so that who stops knows all
            workers[pool] = pool.submit(os.getpid).result()
        return pool

    def attempt(arguments: tuple[Any, ...]) -> Any:
        reason = "stopped"
        for _ in range(1 + AGAIN):
            pool = free.get()  # there is one for each thread, or leave to start one
            try:
                if stopping.is_set():
                    break
                pool = pool or started()
                return pool.submit(_with_shared, call, arguments).result()
            except BrokenProcessPool as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                if pool is not None:
                    workers.pop(pool, None)
                    pool.shutdown(wait=False)
                pool = None
            finally:
                free.put(pool)
        return Lost(reason)

    count = min(engine.workers, len(tasks))
    for _ in range(count):
        free.put(None)
    with ThreadPoolExecutor(count) as threads:
        futures = {threads.submit(attempt, arguments): name for name, arguments in tasks.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            stopping.set()
            done = [future.cancel() or future.done() for future in futures]
            with starting:
                for pid in () if all(done) else workers.values():
                    with suppress(psutil.Error):
                        psutil.Process(pid).kill()  # what runs there is broken off
    for pool in workers:
        pool.shutdown()


def _start_tracker() -> None:
    """Starts the process that removes what killed workers leave behind, and that would warn of it on stderr."""
    from joblib.externals.loky.backend import resource_tracker

    name = "PYTHONWARNINGS"
    before = os.environ.get(name)
    os.environ[name] = ",".join(filter(None, (before, "ignore:resource_tracker")))
    try:
        resource_tracker.ensure_running()
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _begin(shared: bytes, parent: int) -> None:
    """In a new worker: keeps what all calls share, leaves Ctrl-C to the parent, and ends when that is gone."""
    from joblib.externals.loky import process_executor

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Loky takes more than 300 MB since the first call for a leak and starts another process, which would begin anew.
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    _shared[:] = [shared]

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _with_shared(call: Call, arguments: tuple[Any, ...]) -> Any:
    return call(_shared[0], *arguments)


def _dask(engine: Engine, call: Call, shared: bytes, tasks: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
    distributed = _required("distributed", "dask")
    _required("dask.config", "dask").set(
        {"distributed.scheduler.allowed-failures": AGAIN, "distributed.scheduler.worker-saturation": 1.0}
    )
    with ExitStack() as end:
        if engine.scheduler is None:
            here = {"n_workers": engine.workers, "threads_per_worker": 1, "dashboard_address": None}
            cluster = end.enter_context(distributed.LocalCluster(**here, silence_logs="ERROR"))
            client = end.enter_context(distributed.Client(cluster))
        else:
            try:
                client = end.enter_context(distributed.Client(engine.scheduler, timeout=CONNECT_SECONDS))
            except (OSError, ValueError) as error:
                raise _unreachable(engine, error) from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that what all calls share is large
            # Made by a task of its own, and not scattered: where all machines that hold it are lost, it is made again.
            sent = client.submit(bytes, shared, pure=False)
        futures = {client.submit(call, sent, *rest, pure=False): name for name, rest in tasks.items()}
        for future in distributed.as_completed(futures):
            failure = future.exception()
            if isinstance(failure, distributed.scheduler.KilledWorker):
                yield futures[future], Lost(f"its worker {failure.last_worker.address} died")
            else:
                yield futures[future], future.result()


def _ray(engine: Engine, call: Call, shared: bytes, tasks: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
    ray = _required("ray", "ray")
    here = {"num_cpus": engine.workers, "include_dashboard": False} if engine.scheduler is None else {}
    try:
        _require_listener(engine.scheduler)
        ray.init(address=engine.scheduler or "local", log_to_driver=False, logging_level="ERROR", **here)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreachable(engine, error) from None
    try:
        remote = ray.remote(max_retries=AGAIN)(call)
        sent = ray.put(shared)
        waiting = {remote.remote(sent, *arguments): name for name, arguments in tasks.items()}
        while waiting:
            (done, *_), _ = ray.wait(list(waiting))
            name = waiting.pop(done)
            try:
                yield name, ray.get(done)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                yield name, Lost(str(error).strip().splitlines()[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
    finally:
        ray.shutdown()


def _require_listener(address: str | None) -> None:
    """Raises OSError or ValueError where nothing listens at HOST:PORT, for which Ray would wait minutes."""
    if address is not None and address != "auto":
        host, _, port = address.rpartition("//")[2].rpartition(":")
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _required(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"--backend {extra} needs {module}; install it with: pip install 'mpsearch[{extra}]'"
        ) from None


def _unreachable(engine: Engine, error: Exception) -> InputError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return InputError(
        f"no {engine.backend} scheduler answers at {engine.scheduler} ({why}); start one, or see --scheduler"
    )
