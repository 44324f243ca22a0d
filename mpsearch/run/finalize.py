"""The last step of a run: finished models in its folder, made unless they are current."""

from __future__ import annotations

from dataclasses import replace

from hwmodel import BitConfig
from mpsearch.files.folder import Json
from mpsearch.finish.finalize import finish
from mpsearch.run.keys import finished_key
from mpsearch.run.loaded import Loaded
from mpsearch.show.boxes import draw_boxes
from mpsearch.show.plots import model_title
from recon.fit.checkpoint import Progress
from recon.graph.granularity import regroup


def finalize_step(loaded: Loaded, config: BitConfig, name: str) -> Json:
    """One finished model: `chosen/NAME.json` and `model-NAME.safetensors`. Returns what the former says."""
    folder, console, key = loaded.folder, loaded.console, finished_key(loaded, config)
    settings = replace(loaded.settings, memory_bytes=loaded.options.cache_memory_bytes)
    path = folder.file(f"model-{name}.safetensors")
    done = folder.current(f"chosen/{name}.json", key)
    if done is not None and path.is_file() and path.stat().st_size == done["size_bytes"]:
        console.current("finalize", f"{path.name} is current")
        return done
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
        )
    data = {"key": key, "task": loaded.options.task, **finished.to_json()}
    folder.write_json(f"chosen/{name}.json", data)
    if finished.shown and loaded.validation.normalization is not None:
        images = loaded.validation.stored.leaves[0][: len(finished.shown["float"])]
        draw_boxes(
            images.numpy(), finished.shown, model_title(loaded.model.reference), folder.file(f"boxes-{name}.png")
        )
    return data
