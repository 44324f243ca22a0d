"""Reading a run folder back, without its model or its data."""

from __future__ import annotations

from hwmodel import BitConfig, InputError, LayerTable
from mpsearch.folder import Json, RunFolder
from mpsearch.front import ParetoFront


def read_front(folder: RunFolder) -> ParetoFront:
    """The folder's front. Raises InputError where there is none."""
    path = folder.file("front.json")
    if not path.is_file():
        raise InputError(f"{folder.path} has no front.json: search first, with `mpsearch run` or `mpsearch search`")
    return ParetoFront.from_json(path.read_text(encoding="utf-8"))


def read_layers(folder: RunFolder) -> LayerTable:
    """The folder's layer table."""
    return LayerTable.from_json(folder.read_json("layers.json").get("table", {}))


def finished_configs(folder: RunFolder) -> list[tuple[str, Json]]:
    """Name and record of every finished configuration, by name."""
    paths = sorted(folder.file("chosen").glob("*.json"))
    return [(path.stem, folder.read_json(f"chosen/{path.name}")) for path in paths]


def read_configs(finished: list[tuple[str, Json]]) -> dict[str, BitConfig]:
    """Their bit assignments. Raises InputError where nothing is finished."""
    if not finished:
        raise InputError("no configuration is finished here: run `mpsearch finalize RUN` first")
    return {name: BitConfig.from_json(entry["config"]) for name, entry in finished}
