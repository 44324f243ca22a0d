"""A finished model of a run folder, with the network that it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hwmodel import BitConfig, InputError
from mpsearch.export.filesize import about, plan_for
from mpsearch.export.packed import read_layers
from mpsearch.export.plan.build import simulated_plan
from mpsearch.export.plan.records import Plan
from mpsearch.files.folder import Json, RunFolder
from mpsearch.request.compute import HERE, ComputeOptions
from mpsearch.request.options import FinishOptions, RunOptions
from mpsearch.run.artifacts import GIVEN_BITS, SEARCHED, finished_configs
from mpsearch.run.loaded import Loaded
from mpsearch.show.console import Console
from recon.graph.network import Network
from recon.quantizers.quantized import QuantizedLayers


@dataclass(frozen=True, eq=False)
class FinishedModel:
    """A finished model: its `name` in the folder, what `chosen/NAME.json` says of it, its packed file, and how the
    float network and the samples are loaded."""

    name: str
    record: Json
    path: Path
    loaded: Loaded

    @cached_property
    def _read(self) -> tuple[Network, QuantizedLayers]:
        return read_layers(self.path, self.loaded.network)

    @property
    def network(self) -> Network:
        """The float network, with what of the packed file no layer holds."""
        return self._read[0]

    @property
    def layers(self) -> QuantizedLayers:
        """The layers of the packed file."""
        return self._read[1]

    @property
    def config(self) -> BitConfig:
        """Its bits."""
        return BitConfig.from_json(self.record["config"])

    def plan(self, name: str) -> Plan:
        """Its integer plan for files of the form `name`."""
        return plan_for(name, self.network, self.layers, self.network.leaves(self.loaded.calibration))

    def simulated_plan(self) -> Plan:
        """Its plan in real arithmetic, as the packed file is simulated."""
        return simulated_plan(self.network, self.layers)

    def metadata(self) -> dict[str, str]:
        """What an exported file says of itself: its bits by layer and its budgets as JSON, what it was made from."""
        options, model = self.loaded.options, self.loaded.model
        budgets = options.budgets if isinstance(options, RunOptions) else {}
        size = int(self.record["size_bytes"])
        return about(model.reference, model.fingerprint, self.name, self.config, budgets, size)

    def filled(self, name: str) -> int | None:
        """What a file of the form `name` is filled up to: what was budgeted, where that was its size."""
        return int(self.record["file_bytes"]) if self.record.get("size_of") == name else None


def finished_model(folder: Path, name: str | None, console: Console, place: ComputeOptions = HERE) -> FinishedModel:
    """The finished model `name` of a run folder; without a name the only one, or that at the budget.

    Raises InputError where the folder is no run, nothing is finished, or there is no such model.
    """
    where = RunFolder(folder)
    options = _options(where, place)
    found = dict(finished_configs(where))
    if not found:
        raise InputError(f"nothing is finished in {folder}: run `mpsearch finalize {folder}` first")
    if name is None:
        name = next(iter(found)) if len(found) == 1 else "budget"
    if name not in found:
        raise InputError(f"--config must be one of {', '.join(found)}, got {name!r}")
    path = where.file(f"model-{name}.safetensors")
    if not path.is_file():
        raise InputError(f"{path} is missing: run `mpsearch finalize {folder}` to make it again")
    return FinishedModel(name, found[name], path, Loaded(options, where, console))


def _options(folder: RunFolder, place: ComputeOptions) -> FinishOptions:
    given = folder.file(GIVEN_BITS)
    if given.is_file() and not folder.file(SEARCHED).is_file():
        return FinishOptions.from_toml(given, place)
    return RunOptions.from_toml(folder.file(SEARCHED), place)
