"""The summary of a run: what was asked, what came out, and how long it took."""

from __future__ import annotations

import platform
from importlib.metadata import version

import numpy
import pymoo
import torch
import torchvision

from mpsearch.files.folder import Json
from mpsearch.request.budgets import COSTS, NEED_DEVICE
from mpsearch.request.options import RunOptions
from mpsearch.run.place import place_name
from mpsearch.sources.data import DataSource
from mpsearch.sources.models import LoadedModel


def summarize(
    options: RunOptions,
    model: LoadedModel,
    data: DataSource,
    thresholds: tuple[float, float] | None,
    pinned: tuple[str, ...],
    chosen: Json,
    costs: dict[str, float],
    device: str | None,
    place: torch.device,
    seconds: dict[str, float],
    peak_rss_bytes: int,
) -> Json:
    """The contents of `summary.json`. Sizes in bytes; `judged_by` has the units of the `metrics`.

    `thresholds` are those of a detector's boxes. `costs` are those of the chosen configuration; the ones shown are the
    budgeted and, on a device, latency and energy.
    """
    measured = (
        "size_bytes",
        "predicted_bytes",
        "weights_only_bytes",
        "mean_weight_bits",
        "metrics",
        "judged_by",
        "validation_samples",
        "labelled",
    )
    return {
        "model": model.reference,
        "weights": model.source,
        "data": data.source,
        "task": options.task,
        **({} if thresholds is None else dict(zip(("confidence", "nms"), thresholds, strict=True))),
        **{COSTS[name].field: getattr(options, COSTS[name].field) for name in options.budgets},
        **{name: chosen[name] for name in measured},
        **{name: chosen[name] for name in ("size_of", "file_bytes") if name in chosen},
        **({} if device is None else {"device": device}),
        **({"activation_bits": list(options.abits)} if options.abits else {}),
        **({"coding": options.coding} if options.coding != "fixed" else {}),
        **({"symmetric": True} if options.symmetric else {}),
        **({"target": options.target} if options.target else {}),
        **{name: value for name, value in costs.items() if name not in measured and _shown(name, options)},
        "edge_layers_at_8_bits": list(pinned),
        "calibration_samples": len(data.calib),
        "seed": options.seed,
        "compute": place_name(place),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "peak_rss_bytes": peak_rss_bytes,
        "versions": versions(),
    }


def _shown(name: str, options: RunOptions) -> bool:
    return name in NEED_DEVICE or name in options.budgets


def versions() -> dict[str, str]:
    """Versions of what determines a result."""
    return {
        "mpsearch": version("mpsearch"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pymoo": pymoo.__version__,
        "numpy": numpy.__version__,
    }
