"""What a run folder holds beside fronts and models: written, and read back without its model or its data."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hwmodel import BitConfig, CostTable, InputError, LayerTable, Precision
from hwmodel.filesize import PACKED
from mpsearch.files.folder import AGAIN, Json, RunFolder
from mpsearch.files.reading import reading
from mpsearch.optimization.build import build_problem
from mpsearch.optimization.front import ParetoFront
from mpsearch.optimization.picks import picked
from mpsearch.optimization.problem import BitProblem
from mpsearch.request.assignment import read_assignment
from mpsearch.request.budgets import COSTS, NEED_DEVICE
from mpsearch.request.parse import parse_size_of
from mpsearch.sensitivity.cache import load_table
from mpsearch.sensitivity.table import SensitivityTable
from mpsearch.sources.models import LoadedModel
from mpsearch.tasks.figure import read_figures
from recon.likelihood.likelihood import Likelihood

CACHE = "sensitivity.safetensors"
BETWEEN_SECONDS = 0.5  # in which a search has written both of its files
SEARCH = "search again: mpsearch search RUN"
FORMAT = 2  # of run folders: 1 knew top-1 accuracy alone
SEARCHED, GIVEN_BITS = "config.toml", "reconstruct.toml"  # the options of a run, and of `reconstruct`


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run is of, the contents of `layers.json`.

    `key` is of the options that it was made from, `model` the fingerprint of the weights, `graph` that of the
    operations, `images` that of the calibration samples; `heads` say what the network's outputs mean. The file
    whose size counts has `fixed_bytes` beside the layers of `table`.
    """

    key: str
    model: str
    graph: str
    images: str
    heads: list[Json]
    fixed_bytes: int
    table: LayerTable

    def to_json(self) -> Json:
        """A JSON-ready mapping."""
        return {
            "format": FORMAT,
            "key": self.key,
            "fingerprint": self.model,
            "graph": self.graph,
            "images": self.images,
            "heads": self.heads,
            "fixed_bytes": self.fixed_bytes,
            "table": self.table.to_json(),
        }


def heads_json(likelihood: Likelihood) -> list[Json]:
    """A likelihood as JSON."""
    return [json.loads(json.dumps({"kind": type(head).__name__, **asdict(head)})) for head in likelihood.heads]


def require_format(folder: RunFolder) -> None:
    """Refuses a run folder of another format. What is missing is found missing by who needs it."""
    if folder.file("layers.json").is_file():
        found = folder.read_json("layers.json").get("format", 1)
        if found != FORMAT:
            age = "an older" if isinstance(found, int) and found < FORMAT else "another"
            raise InputError(
                f"{folder.path} was made by {age} version of mpsearch (format {found} of run folders, this one reads "
                f"{FORMAT}): start again with another --out, or delete the folder"
            )


def read_origin(folder: RunFolder) -> Origin | None:
    """What the folder's run is of; None where no layers step has written it."""
    if not folder.file("layers.json").is_file():
        return None
    require_format(folder)
    data = folder.read_json("layers.json")
    if "key" not in data:  # written by `reconstruct`, which searches nothing
        return None
    with reading(folder.file("layers.json"), AGAIN):
        model, graph, images = str(data["fingerprint"]), str(data["graph"]), str(data["images"])
        return Origin(
            str(data["key"]),
            model,
            graph,
            images,
            list(data["heads"]),
            int(data["fixed_bytes"]),
            read_layers(folder),
        )


def require_same_model(folder: RunFolder, model: LoadedModel) -> None:
    """Refuses a folder that holds another model's run."""
    require_format(folder)
    if folder.file("layers.json").is_file():
        there = folder.read_json("layers.json")
        if there.get("fingerprint") != model.fingerprint:
            table = there.get("table")
            name = table.get("model", "another model") if isinstance(table, dict) else "another model"
            raise InputError(
                f"{folder.path} holds a run of {name} with other weights, not of {model.reference} as given; name "
                "another folder with --out"
            )


def read_front(folder: RunFolder) -> ParetoFront:
    """The folder's front. Raises InputError where there is none, or the folder is of another format."""
    require_format(folder)
    path = folder.file("front.json")
    if not path.is_file():
        raise InputError(f"{folder.path} has no front.json: search first, with `mpsearch run` or `mpsearch search`")
    with reading(path, SEARCH):
        front = ParetoFront.from_json(path.read_text(encoding="utf-8"))
        _require_layers(folder, front.layers)
        if unknown := set(front.names[1:]) - set(COSTS):
            raise ValueError(f"there is no cost {sorted(unknown)[0]!r}")
        return front


def read_layers(folder: RunFolder) -> LayerTable:
    """The folder's layer table."""
    with reading(folder.file("layers.json"), AGAIN):
        return LayerTable.from_json(folder.read_json("layers.json").get("table", {}))


def finished_configs(folder: RunFolder) -> list[tuple[str, Json]]:
    """Name and record of every finished configuration, by name. Raises InputError where they are of another format."""
    require_format(folder)
    paths = sorted(folder.file("chosen").glob("*.json"))
    return [(path.stem, _finished(folder, path)) for path in paths]


def boxes_file(folder: RunFolder, name: str) -> Path:
    """Where the picture of a finished detector's boxes is."""
    return folder.file(f"boxes-{name}.webp")


def read_boxes(folder: RunFolder) -> dict[str, bytes]:
    """The pictures of boxes that there are, WebP, by the name of the finished configuration."""
    found = {name: boxes_file(folder, name) for name, _ in finished_configs(folder)}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file()}


def _finished(folder: RunFolder, path: Path) -> Json:
    """The record of a finished configuration. Raises InputError where it is not what `finalize` writes."""
    record = folder.read_json(f"chosen/{path.name}")
    with reading(path, "delete it, and finalize again"):
        _require_layers(folder, BitConfig.from_json(record["config"]).layers)
        figures = [figure.name for figure in read_figures(record)]
        for state in ("float", "plain", "finished"):
            for name in figures:
                float(record["metrics"][state][name])
        if int(record["size_bytes"]) < 1 or int(record["validation_samples"]) < 0:
            raise ValueError("sizes must be above zero")
    return record


def _require_layers(folder: RunFolder, layers: tuple[str, ...]) -> None:
    """Raises InputError where these are not the layers of the folder's run."""
    if folder.file("layers.json").is_file() and layers != read_layers(folder).names:
        raise InputError(f"it is of other layers than {folder.file('layers.json')}")


def read_configs(finished: list[tuple[str, Json]]) -> dict[str, BitConfig]:
    """Their bit assignments. Raises InputError where nothing is finished."""
    if not finished:
        raise InputError("no configuration is finished here: run `mpsearch finalize RUN` first")
    return {name: BitConfig.from_json(entry["config"]) for name, entry in finished}


def costs_json(costs: CostTable, allowed: Mapping[str, Sequence[Precision]], device: str | None) -> Json:
    """The contents of `costs.json`: costs per layer and precision, and what every layer may have."""
    arrays = {name: getattr(costs, name) for name in NEED_DEVICE}
    return {
        "layers": list(costs.layers),
        "precisions": [str(precision) for precision in costs.precisions],
        "allowed": [[str(precision) for precision in allowed[name]] for name in costs.layers],
        "fixed_bytes": costs.fixed_bytes,
        "weight_bytes": costs.weight_bytes.tolist(),
        "code_bits": costs.code_bits.tolist(),
        "bops": costs.bops.tolist(),
        **({} if costs.size_of == PACKED else {"size_of": costs.size_of}),
        **({} if device is None else {"device": device}),
        **{name: array.tolist() for name, array in arrays.items() if array is not None},
    }


def read_costs(folder: RunFolder) -> tuple[CostTable, dict[str, tuple[Precision, ...]]]:
    """The costs that the folder's front was searched with, and the precisions that each layer may have."""
    path, data = folder.file("costs.json"), folder.read_json("costs.json")
    with reading(path, SEARCH):
        arrays = {name: np.array(data[name], np.float64) for name in ("latency_s", "energy_j") if name in data}
        layers = tuple(data["layers"])
        _require_layers(folder, layers)
        allowed = [tuple(map(Precision.parse, precisions)) for precisions in data["allowed"]]
        costs = CostTable(
            layers,
            tuple(map(Precision.parse, data["precisions"])),
            np.array(data["weight_bytes"], np.int64),
            np.array(data["code_bits"], np.int64),
            np.array(data["bops"], np.float64),
            int(data["fixed_bytes"]),
            parse_size_of(data.get("size_of", PACKED)),
            **arrays,
        )
        if not all(np.isfinite(array).all() for array in (costs.bops, *arrays.values())):
            raise ValueError("costs must be finite")
        return costs, dict(zip(layers, allowed, strict=True))


def read_problem(folder: RunFolder) -> BitProblem:
    """The problem that the folder's front answers. Raises InputError where the cache has been measured anew since."""
    front, (costs, allowed) = read_front(folder), read_costs(folder)
    if not _same_search(front, costs):  # perhaps a search is just writing them
        time.sleep(BETWEEN_SECONDS)
        front, (costs, allowed) = read_front(folder), read_costs(folder)
        if not _same_search(front, costs):
            raise InputError(f"{folder.path}: front.json and costs.json are of different searches; {SEARCH}")
    sensitivity = read_sensitivity(folder)
    if sensitivity.fingerprint != front.fingerprint:
        raise InputError(
            f"{folder.path}: the front is of an older sensitivity cache; run `mpsearch search {folder.path}`"
        )
    return build_problem(read_layers(folder), costs, sensitivity, allowed, dict(front.budgets), front.names)


def _same_search(front: ParetoFront, costs: CostTable) -> bool:
    """Whether the first point has the size that the costs give it."""
    config = front.config(0)
    if "size_bytes" not in front.names or not set(config.precisions) <= set(costs.precisions):
        return "size_bytes" not in front.names
    at = [costs.precisions.index(precision) for precision in config.precisions]
    size = costs.fixed_bytes + int(costs.weight_bytes[range(len(at)), at].sum())
    return bool(abs(size - front.objectives[0, front.names.index("size_bytes")]) < 1)


def read_sensitivity(folder: RunFolder) -> SensitivityTable:
    """The folder's sensitivity table."""
    path = folder.file(CACHE)
    with reading(path, "delete it to measure again"):
        table = load_table(path)
        _require_layers(folder, table.layers)
        return table


def read_config(folder: RunFolder, text: str) -> tuple[str, BitConfig]:
    """Name and bit assignment of a finished name, budget, knee, a point's number, or a JSON file of bits by layer.

    Raises InputError for anything else.
    """
    finished = dict(finished_configs(folder))
    if text in finished:
        return text, BitConfig.from_json(finished[text]["config"])
    if text in ("budget", "knee") or text.isdecimal():
        front = read_front(folder)
        name, index = picked(front, text)[0]
        return name, front.config(index)
    if Path(text).is_file():
        return Path(text).stem, read_assignment(Path(text), read_layers(folder).names).config
    known = ["budget", "knee", *finished]
    near = difflib.get_close_matches(text, known, 3, 0.4)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise InputError(
        f"a configuration is one of {', '.join(dict.fromkeys(known))}, a point's number or a JSON file, "
        f"got {text!r}{hint}"
    )
