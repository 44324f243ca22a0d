"""Image files of every depth and channel count, arrays of any shape, and what is said of sizes and normalisation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hwmodel.errors import InputError
from mpsearch.sources.data import DataSource, load_data
from mpsearch.sources.folders import image_files
from mpsearch.sources.split import Normalization

HALF = Normalization((0.5,), (0.25,))


def _load(path: Path, size: tuple[int, ...] | None = None, normalization: Normalization | None = None) -> DataSource:
    options: dict[str, Any] = {"calib_samples": 16, "val_samples": None, "seed": 0}
    return load_data(path, input_size=size, normalization=normalization, **options)


def _noise(*shape: int, most: int = 256, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, most, shape).astype(np.uint8 if most <= 256 else np.uint16)


def _files(folder: Path, images: list[Image.Image], suffix: str = "png") -> Path:
    for index, image in enumerate(images):
        image.save(folder / f"{index:02}.{suffix}")
    return folder


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_of_files_are_those_of_the_network(tmp_path: Path, channels: int) -> None:
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    images = [Image.fromarray(_noise(8, 8, 3, seed=seed)).convert(mode) for seed in range(20)]
    x = _load(_files(tmp_path, images), (channels, 8, 8)).calib.stored.leaves[0]
    assert x.shape == (16, 8, 8, channels)
    kept = {np.asarray(image).tobytes() for image in images}
    assert all(image.numpy().tobytes() in kept for image in x)


def test_files_have_no_more_channels(tmp_path: Path) -> None:
    _files(tmp_path, [Image.fromarray(_noise(8, 8, 3))] * 20)
    with pytest.raises(InputError, match=r"1, 3 or 4 channels, the network takes 5; give a \.npz"):
        _load(tmp_path, (5, 8, 8))


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        (np.random.default_rng(0).random((8, 8), dtype=np.float32), "holds floating-point numbers"),
        (_noise(8, 8, most=1024), "has 16 bits .*10 or 12 bits"),
        (_noise(8, 8, most=4096), "has 16 bits .*10 or 12 bits"),
        (np.full((8, 8), 70_000, np.int32), "holds numbers from 70000 to 70000"),
        (np.full((8, 8), -5, np.int32), "holds numbers from -5 to -5"),
    ],
)
def test_depths_that_would_become_nonsense(tmp_path: Path, pixels: NDArray[Any], text: str) -> None:
    _files(tmp_path, [Image.fromarray(pixels)] * 20, "tiff")
    with pytest.raises(InputError, match=rf"image .*\.tiff {text}") as caught:
        _load(tmp_path, (3, 8, 8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    deep = _noise(8, 8, most=65536)
    _files(tmp_path, [Image.fromarray(deep)] * 20, suffix)
    x = _load(tmp_path, (3, 8, 8)).calib.stored.leaves[0]
    np.testing.assert_array_equal(x[0, :, :, 1].numpy(), deep // 257)


def test_a_rotation_in_exif_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in range(20):
        Image.fromarray(_noise(4, 8, 3)).save(tmp_path / f"{index}.png", exif=exif)
    x = _load(tmp_path, (3, 4, 8)).calib.stored.leaves[0]
    np.testing.assert_array_equal(x[0].numpy(), _noise(4, 8, 3))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame_is_read(tmp_path: Path, suffix: str) -> None:
    first, *others = (Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 200, 90))
    for index in range(20):
        first.save(tmp_path / f"{index}.{suffix}", save_all=True, append_images=others, lossless=True)
    assert int(_load(tmp_path, (3, 8, 8)).calib.stored.leaves[0].max()) == 0


def test_single_pixels_are_enlarged_with_a_warning(tmp_path: Path) -> None:
    _files(tmp_path, [Image.fromarray(np.full((1, 1, 3), 7, np.uint8))] * 20)
    loaded = _load(tmp_path, (3, 8, 8))
    assert "warning: images of 1x1 are enlarged to 8x8" in loaded.notes
    assert set(loaded.calib.stored.leaves[0].flatten().tolist()) == {7}


def test_links_lead_to_images_elsewhere_and_not_round_in_a_circle(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    _files(outside, [Image.fromarray(_noise(8, 8, 3))] * 20)
    os.symlink(outside, inside / "images")
    os.symlink(inside, outside / "again")
    assert len(image_files(inside)) == 20
    assert len(_load(inside, (3, 8, 8)).calib) == 16


def test_what_was_guessed_is_said(tmp_path: Path) -> None:
    _files(tmp_path, [Image.fromarray(_noise(8, 8, 3))] * 20)
    size, guess = _load(tmp_path).notes
    assert size == "images go in at their size, 3x8x8: nothing says another"
    assert guess.startswith("warning: normalised by mean 0.485 0.456 0.406, std 0.229 0.224 0.225, which is a guess")
    half = Normalization((0.5,) * 3, (0.25,) * 3)
    assert _load(tmp_path, (3, 8, 8), half).notes == ()
    assert _load(tmp_path, (3, 7, 7), half).notes == ()
    (enlarged,) = _load(tmp_path, (3, 16, 16), half).notes
    assert enlarged == "warning: images of 8x8 are enlarged to 16x16"
    Image.fromarray(_noise(9, 8, 3)).save(tmp_path / "19.png")
    (many,) = _load(tmp_path, None, half).notes
    assert many.startswith("warning: images of many sizes")
    assert _load(tmp_path, None, half).calib.stored.leaves[0].shape == (16, 224, 224, 3)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_arrays_of_any_number_of_channels(tmp_path: Path, channels: int) -> None:
    x = _noise(20, 12, 12, channels)
    np.savez(tmp_path / "a.npz", x=x)
    data = _load(tmp_path / "a.npz", (channels, 8, 8))
    assert data.calib.stored.leaves[0].shape == (16, 8, 8, channels)
    assert data.calib.samples.leaves[0].shape == (16, channels, 8, 8)
    assert data.calib.stored.leaves[0].dtype == torch.uint8
    same = _load(tmp_path / "a.npz", (channels, 12, 12)).calib.stored.leaves[0].numpy()
    assert {image.tobytes() for image in same} <= {image.tobytes() for image in x}


def test_grey_arrays_need_no_last_axis(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=_noise(40, 8, 8), y=np.arange(40))
    data = _load(tmp_path / "a.npz", None, HALF)
    assert data.val is not None
    assert data.calib.samples.leaves[0].shape == (16, 1, 8, 8)
    assert data.val.targets.shape == (24,)


@pytest.mark.parametrize(
    ("x", "kept"),
    [
        (np.random.default_rng(0).random((40, 6)), torch.float32),
        (np.random.default_rng(0).random((40, 2, 3, 4, 5), dtype=np.float32), torch.float32),
        (np.arange(200, dtype=np.int32).reshape(40, 5), torch.int64),
        (np.arange(40, dtype=np.uint16), torch.int64),
    ],
)
def test_other_arrays_go_in_as_they_are(tmp_path: Path, x: NDArray[Any], kept: torch.dtype) -> None:
    np.savez(tmp_path / "a.npz", x=x)
    data = _load(tmp_path / "a.npz")
    assert data.val is not None
    (leaf,) = data.calib.samples.leaves
    assert leaf is data.calib.stored.leaves[0]  # nothing is held twice
    assert (leaf.dtype, leaf.shape[1:]) == (kept, x.shape[1:])
    joined = torch.cat([*data.calib.stored.leaves, *data.val.stored.leaves])
    rows = {row.tobytes() for row in joined.numpy().astype(x.dtype)}
    assert rows <= {row.tobytes() for row in x.astype(joined.numpy().dtype).astype(x.dtype)}
    assert "held out of the same, without labels" in data.source
    assert data.notes == ()


def test_floats_of_another_size_are_used_with_a_warning(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((40, 3, 8, 8), np.float32), y=np.zeros((40, 2)))
    data = _load(tmp_path / "a.npz", (3, 9, 9))
    assert data.notes == ("warning: samples are 3x8x8, not 3x9x9 as was said: used as they are",)
    assert data.val is not None
    assert (data.val.targets.dtype, data.val.targets.shape) == (torch.float32, (24, 2))
