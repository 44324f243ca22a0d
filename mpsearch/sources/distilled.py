"""`--data distilled`: images made from the network itself, for those who have none."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hwmodel.errors import InputError
from hwmodel.files import write_whole
from mpsearch.files.fingerprint import fingerprint
from mpsearch.sources.data import IMAGENET, DataSource
from mpsearch.sources.models import LoadedModel
from mpsearch.sources.split import Normalization, Split
from recon.distill import distill

DISTILLED = "distilled"
MEASURED = 64  # further images that divergence is measured on; nobody knows their labels


def make_distilled(
    model: LoadedModel, samples: int, seed: int, path: Path, on_batch: Callable[[int, int], None]
) -> DataSource:
    """Makes `samples` images to calibrate on and some to measure on, without labels, and keeps them at `path` (.npz).

    Raises InputError where the model has no batch norm, or nothing says what images it takes.
    """
    size, normalization = model.input_size, _normalization(model)
    if size is None or len(size) != 3:
        raise InputError("--data distilled makes images: say their size with --input 3x224x224, or in a JSON")
    channels, height, width = size
    made = (channels, height, width), normalization.mean, normalization.std
    x = distill(model.model, *made, samples + MEASURED, seed, on_batch)
    archive = io.BytesIO()
    np.savez(archive, x=x.numpy(), key=np.array(_key(model, samples, seed)))
    write_whole(path, archive.getvalue())
    return _source(model, x, samples)


def read_distilled(model: LoadedModel, samples: int, seed: int, path: Path) -> DataSource | None:
    """What `make_distilled` kept at `path`; None where there is nothing, or something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != _key(model, samples, seed):
                return None
            return _source(model, torch.from_numpy(np.asarray(file["x"], np.uint8)), samples)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def _key(model: LoadedModel, samples: int, seed: int) -> str:
    return fingerprint(model.fingerprint, samples, seed)


def _source(model: LoadedModel, x: Tensor, samples: int) -> DataSource:
    calib, val = (Split.of(part.contiguous(), None, _normalization(model)) for part in (x[:samples], x[samples:]))
    return DataSource(calib, val, f"{samples} images distilled from the network's batch norms; no image was given")


def _normalization(model: LoadedModel) -> Normalization:
    """What undoes the network's normalisation; where nothing says it, any does, as only the network sees the images."""
    channels = 3 if model.input_size is None else model.input_size[0]
    guess = IMAGENET if channels == 3 else Normalization((0.5,) * channels, (0.25,) * channels)
    return model.normalization or guess
