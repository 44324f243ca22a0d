"""The summary of a run: what was asked, what came out, and how long it took."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import numpy
import pymoo
import torch
import torchvision

from mpsearch.data import DataSource
from mpsearch.folder import Json
from mpsearch.models import LoadedModel
from mpsearch.options import RunOptions


def summarize(
    options: RunOptions,
    model: LoadedModel,
    data: DataSource,
    pinned: tuple[str, ...],
    chosen: Json,
    seconds: dict[str, float],
    peak_rss_bytes: int,
) -> Json:
    """The contents of `summary.json`. Top-1 in percent, KL in nats, sizes in bytes."""
    measured = (
        "size_bytes",
        "weights_only_bytes",
        "mean_weight_bits",
        "top1_float",
        "top1_nearest",
        "top1_reconstructed",
        "kl_nearest",
        "kl_reconstructed",
        "validation_images",
    )
    return {
        "model": model.reference,
        "weights": model.source,
        "data": data.source,
        "size_budget_bytes": options.size_budget_bytes,
        **{name: chosen[name] for name in measured},
        "edge_layers_at_8_bits": list(pinned),
        "calibration_images": len(data.calib.x),
        "seed": options.seed,
        "seconds": seconds,
        "peak_rss_bytes": peak_rss_bytes,
        "versions": versions(),
    }


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


def lines(summary: Json) -> list[tuple[str, str]]:
    """The summary for reading: (what, figure) rows."""

    def percent(value: Any) -> str:
        return "no labels" if value is None else f"{value:.2f} %"

    budget, size = summary["size_budget_bytes"], summary["size_bytes"]
    return [
        ("packed file", f"{size:,} bytes of {budget:,} ({100 * size / budget:.1f} % of the budget)"),
        (
            "weights only",
            f"{summary['weights_only_bytes']:,.0f} bytes, {summary['mean_weight_bits']:.2f} bits a weight",
        ),
        ("top-1 float", percent(summary["top1_float"])),
        ("top-1 plain rounding", percent(summary["top1_nearest"])),
        ("top-1 reconstructed", percent(summary["top1_reconstructed"])),
        ("KL plain rounding", f"{summary['kl_nearest']:.4f} nats"),
        ("KL reconstructed", f"{summary['kl_reconstructed']:.4f} nats"),
        ("measured on", f"{summary['validation_images']:,} validation images"),
        ("edge layers at 8 bits", ", ".join(summary["edge_layers_at_8_bits"]) or "none: searched like any other"),
        ("seconds", ", ".join(f"{step} {value:.1f}" for step, value in summary["seconds"].items())),
        ("peak memory", f"{summary['peak_rss_bytes'] / 1e9:.2f} GB"),
    ]
