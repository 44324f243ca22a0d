"""Data from folders, arrays and the user's code, and what is said about data that will not do."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hwmodel.errors import InputError
from mpsearch.sources.data import IMAGENET, DataSource, held_out, load_data
from mpsearch.sources.split import Normalization, Split

SIZE = 16


def _pixels(count: int, height: int = SIZE, width: int = SIZE, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def _save(file: Path, pixels: NDArray[np.uint8], mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(file)


def _load(path: Path | str | None, **options: Any) -> DataSource:
    settings = {"input_size": (3, SIZE, SIZE), "normalization": IMAGENET}
    settings |= {"calib_samples": 32, "val_samples": None, "seed": 0}
    return load_data(path, **(settings | options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 flat calibration images; 5 validation images in each of the classes a, b and c."""
    for index, pixels in enumerate(_pixels(20)):
        _save(tmp_path / "calib" / f"{index:02}.png", pixels)
    for index, pixels in enumerate(_pixels(15, seed=1)):
        _save(tmp_path / "val" / "abc"[index // 5] / f"{index:02}.png", pixels)
    return tmp_path


def _sorted(x: NDArray[np.uint8]) -> list[bytes]:
    """Images in an order of their own: calibration images come in a random one."""
    return sorted(image.tobytes() for image in x)


def _x(split: Split) -> torch.Tensor:
    """The only tensor of the samples, as it is kept."""
    (leaf,) = split.stored.leaves
    return leaf


def _refused(text: str, path: Path | str | None, **options: Any) -> None:
    with pytest.raises(InputError, match=text) as caught:
        _load(path, **options)
    assert "\n" not in str(caught.value)


def test_a_folder_holds_what_was_written(folder: Path) -> None:
    data = _load(folder)
    assert _sorted(_x(data.calib).numpy()) == _sorted(_pixels(20))
    assert data.calib.targets is None
    assert data.val is not None
    assert data.val.targets is not None
    np.testing.assert_array_equal(_x(data.val).numpy(), _pixels(15, seed=1))
    assert data.val.targets.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert data.source == f"{folder}: 20 of 20 calibration images (32 asked for), 15 of 15 validation images"


def test_classes_txt_gives_the_index(folder: Path) -> None:
    (folder / "classes.txt").write_text("x nothing here\nc third, of val\nb\na\n\n")
    data = _load(folder)
    assert data.classes is not None
    data.classes.check(4)
    assert data.val is not None
    assert data.val.targets is not None
    assert data.val.targets.tolist() == [3] * 5 + [2] * 5 + [1] * 5
    with pytest.raises(InputError, match="4 lines but the model 3 classes"):
        data.classes.check(3)
    (folder / "classes.txt").write_text("x\nc\nb\n")
    _refused("does not list a", folder)
    (folder / "classes.txt").write_text("a\na\nb\n")
    _refused("3 lines hold 2 distinct", folder)


def test_folders_that_are_not_the_models_classes(folder: Path) -> None:
    data = _load(folder)
    assert data.classes is not None
    data.classes.check(3)
    with pytest.raises(InputError, match=r"3 class folders but the model 10 classes; put a classes\.txt"):
        data.classes.check(10)


def test_train_stands_in_for_calib_and_its_classes_do_not_matter(folder: Path) -> None:
    (folder / "calib").rename(folder / "train")
    flat = _load(folder)
    for index, file in enumerate(sorted((folder / "train").iterdir())):
        (folder / "train" / f"z{index // 10}").mkdir(exist_ok=True)
        file.rename(folder / "train" / f"z{index // 10}" / file.name)
    assert _load(folder).calib.fingerprint == flat.calib.fingerprint


def test_samples_are_seeded_and_begin_larger_ones(folder: Path) -> None:
    every = [image.tobytes() for image in _pixels(20)]

    def chosen(samples: int, seed: int) -> list[int]:
        return [every.index(x.numpy().tobytes()) for x in _x(_load(folder, calib_samples=samples, seed=seed).calib)]

    small, large = chosen(16, 7), chosen(18, 7)
    assert small == chosen(16, 7)
    assert small != sorted(small)
    assert small == large[:16]
    assert small != chosen(16, 8)
    assert _load(folder, val_samples=4).val is not None
    assert len(_load(folder, val_samples=4).val or ()) == 4


def test_fingerprints_follow_the_contents(folder: Path) -> None:
    before = _load(folder)
    assert before.calib.fingerprint == _load(folder).calib.fingerprint
    _save(folder / "calib" / "00.png", _pixels(1, seed=9)[0])
    after = _load(folder)
    assert before.calib.fingerprint != after.calib.fingerprint
    assert before.val is not None
    assert after.val is not None
    assert before.val.fingerprint == after.val.fingerprint
    assert Split.of(_x(before.val), None, IMAGENET).fingerprint != before.val.fingerprint


def test_other_sizes_are_resized_and_cropped_at_the_centre(tmp_path: Path) -> None:
    # 32x64: the short side goes to ceil(16 * 256 / 224) = 19, the long one to 38; the crop is the middle 16x16.
    ramp = np.broadcast_to(np.linspace(0, 255, 64)[None, :, None], (32, 64, 3)).astype(np.uint8)
    np.savez(tmp_path / "calib.npz", x=np.repeat(ramp[None], 16, axis=0))
    x = _x(_load(tmp_path).calib)[0].numpy().astype(float)
    columns = (np.arange(16) + 11 + 0.5) / 38 * 64 - 0.5
    np.testing.assert_allclose(x[8, :, 0], np.interp(columns, np.arange(64), ramp[0, :, 0]), atol=2)
    assert (x == x[:1]).all()


def test_small_images_are_enlarged(tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", x=np.full((16, 5, 7, 3), 77, dtype=np.uint8))
    assert (_x(_load(tmp_path).calib) == 77).all()


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    pixels = _pixels(16)
    grey = pixels[0, :, :, 0]
    for index in range(10):
        _save(tmp_path / "calib" / f"{index}.png", pixels[index])
    Image.fromarray(grey).save(tmp_path / "calib" / "a-grey.png")
    Image.fromarray(np.dstack([pixels[1], grey])).save(tmp_path / "calib" / "b-alpha.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "calib" / "c-deep.png")
    palette = Image.fromarray(grey).convert("P")
    palette.save(tmp_path / "calib" / "d-palette.png", transparency=bytes(range(256)))
    _save(tmp_path / "calib" / "e-bits.png", pixels[2], "1")
    _save(tmp_path / "calib" / "f-cmyk.jpg", pixels[3], "CMYK")
    (tmp_path / "calib" / "notes.txt").write_text("not an image")
    (tmp_path / "calib" / "._g.png").write_text("not an image")
    x = _x(_load(tmp_path).calib).numpy()
    assert x.shape == (16, SIZE, SIZE, 3)
    found = _sorted(x)
    assert found.count(np.dstack([grey] * 3).tobytes()) == 3
    assert found.count(pixels[1].tobytes()) == 2


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_broken_image_is_named(folder: Path, damage: bytes | None) -> None:
    file = folder / "calib" / "07.png"
    file.write_bytes(file.read_bytes()[:200] if damage is None else damage)
    _refused(r"image .*07\.png cannot be read", folder)


def test_missing_or_empty_folders(tmp_path: Path) -> None:
    _refused("no such data", tmp_path / "nowhere")
    _refused("found neither", tmp_path)
    (tmp_path / "calib").mkdir()
    _refused("no images", tmp_path)
    (tmp_path / "file.txt").write_text("")
    _refused("no such data", tmp_path / "file.txt")


def test_too_few_calibration_images(tmp_path: Path) -> None:
    _save(tmp_path / "calib" / "one.png", _pixels(1)[0])
    _refused("at least 16 calibration images are needed, got 1", tmp_path)
    _refused("at least 16 calibration images are needed, 1 were asked for", tmp_path, calib_samples=1)
    _refused("at least 1 validation image", tmp_path, val_samples=0)


@pytest.mark.parametrize("name", ["val", "valid", "test"])
def test_labels_are_not_needed(folder: Path, name: str) -> None:
    for file in (folder / "val").glob("*/*.png"):
        file.rename(folder / "val" / file.name)
    (folder / "val").rename(folder / name)
    data = _load(folder)
    assert data.val is not None
    assert data.val.targets is None
    assert data.classes is None
    assert len(data.val) == 15
    assert data.source.endswith("15 of 15 validation images, without labels")


@pytest.mark.parametrize("place", ["", "calib", "some/where"])
def test_a_part_of_images_alone_is_held_out(tmp_path: Path, place: str) -> None:
    for index, pixels in enumerate(_pixels(100)):
        _save(tmp_path / place / f"{index:02}.png", pixels)
    data = _load(tmp_path)
    assert data.val is not None
    assert (len(data.calib), len(data.val), data.val.targets) == (32, 25, None)
    assert data.source == (
        f"{tmp_path}: 32 of 75 calibration images, 25 of 25 validation images held out of the same, without labels"
    )
    assert not {image.tobytes() for image in _x(data.calib).numpy()} & set(_sorted(_x(data.val).numpy()))
    assert torch.equal(_x(_load(tmp_path, calib_samples=20).calib), _x(data.calib)[:20])
    fewer = _load(tmp_path, val_samples=5).val
    assert fewer is not None
    assert len(fewer) == 5


@pytest.mark.parametrize(("count", "held"), [(16, 0), (17, 1), (32, 16), (40, 16), (100, 25), (10_000, 1024)])
def test_how_many_are_held_out(count: int, held: int) -> None:
    assert held_out(count) == held


def test_npz_pair(tmp_path: Path) -> None:
    x, y = _pixels(20), np.arange(20, dtype=np.uint8) % 3
    np.savez(tmp_path / "calib.npz", x=x, y=y)
    np.savez(tmp_path / "val.npz", x=x, y=y)
    data = _load(tmp_path)
    assert data.calib.targets is None
    assert data.val is not None
    assert data.val.targets is not None
    assert data.val.targets.dtype == torch.int64
    np.testing.assert_array_equal(data.val.targets.numpy(), y)


def test_one_npz_is_divided_without_overlap(tmp_path: Path) -> None:
    x, y = _pixels(50), np.arange(50)
    np.savez(tmp_path / "all.npz", x=x, y=y)
    data = _load(tmp_path / "all.npz")
    assert data.val is not None
    assert data.val.targets is not None
    assert (len(data.calib), len(data.val)) == (25, 25)
    np.testing.assert_array_equal(_x(data.val).numpy(), x[data.val.targets.numpy()])
    calibrated = {image.numpy().tobytes() for image in _x(data.calib)}
    assert not calibrated & {image.numpy().tobytes() for image in _x(data.val)}


@pytest.mark.parametrize(
    ("text", "arrays"),
    [
        ("NaN or infinite", {"x": np.full((20, SIZE, SIZE, 3), np.nan, dtype=np.float32)}),
        ("samples are 16x16x3, but the network takes 3x16x16", {"x": np.zeros((20, SIZE, SIZE, 3), np.float32)}),
        ("channels go last", {"x": np.zeros((20, 3, SIZE, SIZE), dtype=np.uint8)}),
        ("must be uint8 images", {"x": np.zeros((20, SIZE), dtype=np.uint8)}),
        ("images have 4 channels, but the network takes 3", {"x": np.zeros((20, SIZE, SIZE, 4), dtype=np.uint8)}),
        ("convert deep images", {"x": np.zeros((20, SIZE, SIZE, 3), dtype=np.uint16)}),
        ("must be uint8 images", {"x": np.zeros((20, SIZE, SIZE, 3), dtype=bool)}),
        ("no samples", {"x": np.zeros((0, SIZE, SIZE, 3), dtype=np.uint8)}),
        ("one entry for each of 20 samples", {"x": _pixels(20), "y": np.zeros(19, dtype=np.int64)}),
        ("y must be numbers", {"x": _pixels(20), "y": np.array(["cat"] * 20)}),
        ("y has NaN", {"x": _pixels(20), "y": np.full(20, np.nan)}),
        ("it has none", {"images": _pixels(20)}),
        ("plain arrays", {"x": np.array([{}], dtype=object)}),
    ],
)
def test_arrays_that_will_not_do(tmp_path: Path, text: str, arrays: dict[str, NDArray[Any]]) -> None:
    np.savez(tmp_path / "calib.npz", **arrays)  # type: ignore[arg-type]
    _refused(text, tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 5000, None])
def test_damaged_npz(tmp_path: Path, keep: int | None) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=_pixels(20))
    content = stream.getvalue()
    if keep is None:
        content = content[:3000] + bytes(200) + content[3200:]
    (tmp_path / "calib.npz").write_bytes(content[:keep])
    _refused("no readable .npz file", tmp_path)


def test_factory(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np, torch\n"
        f"x = np.random.default_rng(0).integers(0, 256, (20, {SIZE}, {SIZE}, 3), dtype=np.uint8)\n"
        "def data():\n    return x, torch.from_numpy(x[:6]), [0, 1, 2, 0, 1, 2]\n"
        "def unlabelled():\n    return x, None, None\n"
        "def wrong():\n    return 3\n"
        "def raising():\n    raise RuntimeError('disk gone\\nsecond line')\n"
    )
    data = _load(f"{tmp_path}/mine.py:data")
    assert _sorted(_x(data.calib).numpy()) == _sorted(_pixels(20))
    assert data.val is not None
    assert data.val.targets is not None
    assert data.val.targets.tolist() == [0, 1, 2, 0, 1, 2]
    held = _load(f"{tmp_path}/mine.py:unlabelled", calib_samples=16)
    assert held.val is not None
    assert (len(held.calib), len(held.val), held.val.targets) == (16, 4, None)
    _refused("must return .* got a int", f"{tmp_path}/mine.py:wrong")
    _refused("raised RuntimeError: disk gone$", f"{tmp_path}/mine.py:raising")
    _refused("no function 'other'", f"{tmp_path}/mine.py:other")


def test_normalization_is_the_formula_in_channels_last() -> None:
    x = torch.from_numpy(_pixels(4))
    out = IMAGENET(x)
    mean, std = torch.tensor([IMAGENET.mean, IMAGENET.std], dtype=torch.float64)
    torch.testing.assert_close(
        out.double(), ((x / 255.0).double() - mean).div(std).permute(0, 3, 1, 2), atol=1e-6, rtol=1e-6
    )
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert x.dtype == torch.uint8


def test_embedded_data() -> None:
    from mpsearch.sources import demo

    data = _load(None, input_size=demo.INPUT_SIZE, normalization=None, val_samples=64)
    assert data.val is not None
    assert (len(data.calib), len(data.val)) == (32, 64)
    assert 0 <= int(data.val.targets.min()) <= int(data.val.targets.max()) < len(demo.CLASSES)
    assert data.calib.normalization == Normalization(demo.MEAN, demo.STD)
    _refused("the embedded data set has 64 classes and images of 3x48x48, the model takes 3x16x16", None)


def test_imagenet_folder() -> None:
    root = Path(os.environ.get("MPSEARCH_DATA", "../shared/data")) / "imagenet"
    if not root.is_dir():
        pytest.skip(f"no ImageNet images in {root}")
    data = _load(root, input_size=(3, 224, 224), calib_samples=64, val_samples=64)
    lines = (root / "manifest.csv").read_text().splitlines()[1:]
    assert data.val is not None
    assert data.val.targets is not None
    assert _x(data.calib).shape == (64, 224, 224, 3)
    labels = [int(line.split(",")[1]) for line in lines if line.startswith("val/")]
    assert set(data.val.targets.tolist()) <= set(labels)
    assert data.source.endswith("64 of 512 calibration images, 64 of 1886 validation images")
