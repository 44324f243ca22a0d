"""What workers are sent once, and what they make of it once."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace

import cloudpickle
from rich.console import Console as RichConsole

from hwmodel import InputError
from mpsearch.files.folder import RunFolder
from mpsearch.request.compute import SpreadOptions
from mpsearch.request.options import FinishOptions
from mpsearch.run.engines import Engine
from mpsearch.run.loaded import Given, Loaded
from mpsearch.show.console import Console
from mpsearch.sources.data import DataSource

_loaded: dict[str, Loaded] = {}  # in a worker, by what it was sent


def engine_of(where: SpreadOptions, tasks: int) -> Engine:
    """The engine that the options ask for: as many workers as there are tasks at most, this machine's threads shared
    among those that are here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(where.workers or cores, tasks)
    return Engine(where.backend, workers, where.threads or max(1, cores // workers), where.scheduler)


def sent(loaded: Loaded, threads: int, data: DataSource) -> bytes:
    """Model, the samples of `data`, task and options for workers, which load nothing themselves.

    Raises InputError where they cannot be sent.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("factory_"):  # the user's file, which workers have no module of
            cloudpickle.register_pickle_by_value(module)
    model = replace(loaded.model, model=loaded.model.model)
    options = replace(loaded.options, threads=threads)
    try:
        return bytes(cloudpickle.dumps((Given(model, data, loaded.task), options)))
    except Exception as error:  # whatever objects of the user say
        raise InputError(f"the model or its data cannot be sent to workers ({error}); leave --workers out") from None


def received(shared: bytes, folder: RunFolder, name: str) -> Loaded:
    """What was sent, unpacked and captured once a worker."""
    key = hashlib.sha256(shared).hexdigest()
    if key not in _loaded:
        given, options = cloudpickle.loads(shared)
        assert isinstance(options, FinishOptions)
        _loaded.clear()
        _loaded[key] = Loaded(options, folder, Console(), given=given)
    loaded = _loaded[key]
    loaded.folder = folder
    loaded.console = Console(log=RichConsole(stderr=True, force_terminal=False, soft_wrap=True), prefix=f"{name}: ")
    return loaded
