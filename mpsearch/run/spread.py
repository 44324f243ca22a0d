"""Points of a front finished by many processes: what they are sent, what they do, and what becomes of it here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from hwmodel import BitConfig, InputError
from hwmodel.files import write_whole
from mpsearch.files.folder import Json, RunFolder
from mpsearch.request.compute import SpreadOptions
from mpsearch.run.artifacts import boxes_file
from mpsearch.run.engines import Lost
from mpsearch.run.expected import Stage
from mpsearch.run.finalize import bytes_of_coded, current_finished, finalize_step
from mpsearch.run.keys import finished_key
from mpsearch.run.loaded import Loaded
from mpsearch.run.sent import engine_of, received, sent


def finalize_points(
    loaded: Loaded, configs: Mapping[str, BitConfig], where: SpreadOptions
) -> Iterator[tuple[str, Json]]:
    """Finishes points by name, as they are done; the records and models are those of `finalize_step`, byte for byte
    where the workers have as many threads as that.

    The points that are current come first. Raises InputError, once all others are done, that names points whose worker
    died again and again.
    """
    if not where.spread:
        for name, config in configs.items():
            yield name, finalize_step(loaded, config, name)
        return
    tasks: dict[str, tuple[str, dict[str, str], dict[str, float], str | None]] = {}
    keys = {}
    here = where.backend == "loky"
    for name, config in configs.items():
        coded = bytes_of_coded(loaded.folder, loaded.network.table, config)
        keys[name] = finished_key(loaded, config, coded)
        done = current_finished(loaded, name, keys[name])
        if done is None:
            tasks[name] = (name, config.to_json(), coded, str(loaded.folder.path) if here else None)
        else:
            yield name, done
    if not tasks:
        return
    engine = engine_of(where, len(tasks))
    loaded.require_memory(Stage.FINALIZE, workers=engine.workers if engine.scheduler is None else 0)
    shared = sent(loaded, engine.threads, loaded.data)
    loaded.console.note(
        f"finalize: {len(tasks)} points by {engine.workers} workers ({engine.backend}) of {engine.threads} threads; "
        f"each is sent {len(shared):,} bytes once"
    )
    _ = loaded.judge  # its doubts are said here, and once
    lost = []
    with loaded.clock.timed("finalize"):
        for number, (name, result) in enumerate(engine.calls(finish_point, shared, tasks), 1):
            if isinstance(result, Lost):
                lost.append(name)
                loaded.console.note(f"{name} is given up: {result.reason}")
                continue
            record, files = result
            if record["key"] != keys[name]:
                raise InputError(
                    f"{name} was finished by workers with another version of mpsearch; install the same one"
                )
            if files:
                for file, content in files.items():
                    write_whole(loaded.folder.file(file), content)
                loaded.folder.write_json(f"chosen/{name}.json", record)
            loaded.console.note(f"{name} is done, {number} of {len(tasks)}")
            yield name, record
    if lost:
        raise InputError(
            f"the workers of {', '.join(lost)} died three times, out of memory or killed; all others are kept: start "
            "the same command again with fewer --workers"
        )


def finish_point(
    shared: bytes, name: str, given: Mapping[str, str], coded: Mapping[str, float], folder: str | None
) -> tuple[Json, dict[str, bytes]]:
    """In a worker: one finished point, its configuration `given` as JSON and what its entropy-coded layers may take, in
    the run `folder` where that is on this machine; else its files come along with the record."""
    config = BitConfig.from_json(given)
    if folder is not None:
        return finalize_step(received(shared, RunFolder(Path(folder)), name), config, name, coded), {}
    with tempfile.TemporaryDirectory(prefix="mpsearch-") as temporary:
        place = RunFolder(Path(temporary))
        place.file("chosen").mkdir()
        record = finalize_step(received(shared, place, name), config, name, coded)
        made = (place.file(f"model-{name}.safetensors"), boxes_file(place, name))
        return record, {path.name: path.read_bytes() for path in made if path.is_file()}
