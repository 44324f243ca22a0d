"""The last step of a run: finished models in its folder, made unless they are current."""

from __future__ import annotations

from collections.abc import Mapping

from hwmodel import BitConfig, LayerTable
from hwmodel.files import write_whole
from hwmodel.filesize import FORMS, PACKED
from hwmodel.size import input_bytes
from mpsearch.export.filesize import about, file_bytes, plan_for
from mpsearch.export.packed import read_layers
from mpsearch.files.folder import Json, RunFolder
from mpsearch.finish.finalize import Finished, finish
from mpsearch.request.options import RunOptions
from mpsearch.run.artifacts import boxes_file, read_costs, read_origin
from mpsearch.run.expected import Stage
from mpsearch.run.keys import finished_key
from mpsearch.run.loaded import Loaded
from mpsearch.show.boxes import draw_boxes
from mpsearch.show.plots import model_title
from recon.fit.checkpoint import Progress
from recon.graph.granularity import regroup


def finalize_step(loaded: Loaded, config: BitConfig, name: str, coded_bytes: Mapping[str, float] | None = None) -> Json:
    """One finished model: `chosen/NAME.json` and `model-NAME.safetensors`. Returns what the former says.

    `coded_bytes` are what entropy-coded layers may take, by default what the folder's search took them for.
    """
    folder, console = loaded.folder, loaded.console
    if coded_bytes is None:
        coded_bytes = bytes_of_coded(folder, loaded.network.table, config)
    key = finished_key(loaded, config, coded_bytes)
    settings = loaded.within_memory
    path = folder.file(f"model-{name}.safetensors")
    done = current_finished(loaded, name, key)
    if done is not None:
        return done
    loaded.require_memory(Stage.FINALIZE)
    judge = loaded.judge  # before anything is fitted: it says where the float network is in doubt
    work = Progress(folder.file(f"finalize-{name}.partial"), key)
    count = len(regroup(loaded.network, settings.granularity).units)
    with loaded.clock.timed("finalize"), console.finalizing(count, settings) as watch:
        finished = finish(
            name,
            loaded.network,
            loaded.model.reference,
            loaded.calibration,
            loaded.likelihood,
            config,
            settings,
            path,
            work,
            judge,
            watch.block,
            coded_bytes,
            loaded.prepared(config),
        )
    data = {"key": key, "task": loaded.options.task, **finished.to_json(), **_exported(loaded, finished)}
    if finished.shown and loaded.validation.normalization is not None:
        images = loaded.validation.stored.leaves[0][: len(finished.shown["float"])]
        picture = draw_boxes(images.numpy(), finished.shown, model_title(loaded.model.reference))
        write_whole(boxes_file(folder, name), picture)
    folder.write_json(f"chosen/{name}.json", data)
    return data


def _exported(loaded: Loaded, finished: Finished) -> Json:
    """An exported file's size, where that was budgeted, and what the search took it for, which it is filled up to."""
    options, network = loaded.options, loaded.network
    if not isinstance(options, RunOptions) or options.size_of == PACKED:
        return {}
    form, origin = FORMS[options.size_of], read_origin(loaded.folder)
    if origin is None:  # a worker elsewhere has no run folder
        return {}
    pairs = zip(network.table, finished.config.precisions, strict=True)
    predicted = origin.fixed_bytes + sum(form.layer_bytes(*pair) for pair in pairs)
    low_bit, layers = read_layers(loaded.folder.file(f"model-{finished.name}.safetensors"), network)
    metadata = about(
        loaded.model.reference,
        loaded.model.fingerprint,
        finished.name,
        finished.config,
        options.budgets,
        finished.size_bytes,
    )
    plan = plan_for(form.name, low_bit, layers, network.leaves(loaded.calibration))
    written = file_bytes(form.name, low_bit, plan, metadata)
    if written > predicted:
        loaded.console.note(
            f"the {form.title} of {finished.name} has {written:,} bytes, {written - predicted:,} more than were "
            "searched with; lower --size-budget by as much"
        )
    return {"size_of": form.name, "predicted_bytes": predicted, "file_bytes": max(written, predicted)}


def current_finished(loaded: Loaded, name: str, key: str) -> Json | None:
    """The record of a finished model that was made from `key` and is there, which is noted; else None."""
    done, path = loaded.folder.current(f"chosen/{name}.json", key), loaded.folder.file(f"model-{name}.safetensors")
    if done is None or not path.is_file() or path.stat().st_size != done.get("size_bytes"):
        return None
    loaded.console.current("finalize", f"{path.name} is current")
    return done


def bytes_of_coded(folder: RunFolder, table: LayerTable, config: BitConfig) -> dict[str, float]:
    """What the folder's search took the entropy-coded layers of a configuration for; empty where it has no search of
    such."""
    if not any(precision.rate for precision in config.precisions) or not folder.file("costs.json").is_file():
        return {}
    costs, _ = read_costs(folder)
    if costs.layers != table.names or not set(config.precisions) <= set(costs.precisions):
        return {}
    sizes: dict[str, float] = {}
    for row, (layer, precision) in enumerate(zip(table, config.precisions, strict=True)):
        if precision.rate:
            taken = costs.weight_bytes[row, costs.precisions.index(precision)]
            sizes[layer.name] = float(taken - input_bytes(layer, precision))
    return sizes
