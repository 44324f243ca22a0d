"""`--data distilled`: images made from the network itself, for those who have none."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpsearch.files.fingerprint import fingerprint
from mpsearch.sources.images import DataSource, make_images
from mpsearch.sources.models import LoadedModel
from recon.distill import distill

DISTILLED = "distilled"
MEASURED = 64  # further images that divergence is measured on; nobody knows their labels


def make_distilled(
    model: LoadedModel, samples: int, seed: int, path: Path, on_batch: Callable[[int, int], None]
) -> DataSource:
    """Makes `samples` images to calibrate on and some to measure on, without labels, and keeps them at `path` (.npz).

    Raises InputError where the model has no batch norm.
    """
    x = distill(model.model, model.input_size, model.mean, model.std, samples + MEASURED, seed, on_batch)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, x=x.numpy(), key=np.array(_key(model, samples, seed)))
    os.replace(temporary, path)
    return _source(x, samples)


def read_distilled(model: LoadedModel, samples: int, seed: int, path: Path) -> DataSource | None:
    """What `make_distilled` kept at `path`; None where there is nothing, or something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != _key(model, samples, seed):
                return None
            return _source(torch.from_numpy(np.asarray(file["x"], np.uint8)), samples)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def _key(model: LoadedModel, samples: int, seed: int) -> str:
    return fingerprint(model.fingerprint, samples, seed)


def _source(x: Tensor, samples: int) -> DataSource:
    calib, val = (make_images(part.contiguous(), None) for part in (x[:samples], x[samples:]))
    return DataSource(calib, val, f"{samples} images distilled from the network's batch norms; no image was given")
