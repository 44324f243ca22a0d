"""Models by name and by the user's code, their weights, and what is said about weights that will not do."""

from __future__ import annotations

import json
import os
import pickle
import urllib.error
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from hwmodel.errors import InputError
from mpsearch.sources.data import DataSource, load_data
from mpsearch.sources.models import LoadedModel, build_architecture, load_model
from mpsearch.sources.split import Normalization

DATA = Path(os.environ.get("MPSEARCH_DATA", "../shared/data"))
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"

PLAIN = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 5))

def half():
    return plain().half().train()

def no_module():
    return 3

def raising():
    raise RuntimeError("out of luck\\nand more")

def masked():
    model = plain()
    model.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
    return model

def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3))

def meta():
    with torch.device("meta"):
        return plain()

def broken():
    model = plain()
    nn.init.constant_(model[0].weight, float("nan"))
    return model
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing by threads, and lose much where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def plain(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(PLAIN)
    return f"{tmp_path}/net.py:"


def _state(name: str = "mobilenet_v2", classes: int = 7, seed: int = 3, **options: Any) -> OrderedDict[str, Tensor]:
    torch.manual_seed(seed)
    state: OrderedDict[str, Tensor] = getattr(torchvision.models, name)(num_classes=classes, **options).state_dict()
    return state


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a MobileNetV2 with 7 classes, without the counters of batch norm, made for 32x32 images."""
    state = {name: value for name, value in _state().items() if not name.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "mobile.safetensors")
    known = {"input_size": [3, 32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 1], "licence": "ours"}
    (tmp_path / "mobile.json").write_text(json.dumps(known))
    return tmp_path / "mobile.safetensors"


def _same(loaded: LoadedModel, state: OrderedDict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in loaded.model.state_dict().items() if name in state)


def _refused(text: str, name: str, weights: Path | None = None, demo: bool = False) -> None:
    with pytest.raises(InputError, match=text) as caught:
        load_model(name, weights, demo=demo)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenetv2", "MobileNetV2", "MobileNet-V2"])
def test_a_name_however_it_is_spelt(name: str, weights: Path) -> None:
    loaded = load_model(name, weights, demo=False)
    assert loaded.reference == "torchvision:mobilenet_v2?num_classes=7"
    assert loaded.input_size == (3, 32, 32)
    assert loaded.normalization == Normalization((0.5, 0.4, 0.3), (0.2, 0.2, 1.0))
    assert loaded.source == str(weights)
    assert loaded.notes == ("input 3x32x32, mean 0.5 0.4 0.3, std 0.2 0.2 1: from mobile.json",)
    assert _same(loaded, _state())
    assert not any(module.training for module in loaded.model.modules())


def test_names_that_are_not_known() -> None:
    _refused(r"unknown model 'mobilnet_v2'; did you mean mobilenet_v2", "mobilnet_v2")
    _refused(r"did you mean regnet_x_16gf or regnet_x_1_6gf\?", "regnetx16gf")
    _refused("unknown model 'qqqq'; expected a torchvision classifier", "qqqq")
    _refused("unknown model 'qqqq'", "qqqq", demo=True)
    _refused("only mobilenet_v2 is there without --data", "resnet18", demo=True)
    with pytest.raises(InputError, match="a model reference looks like"):
        build_architecture("mobilenet_v2")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("regnet_y_400mf", {}),
        ("mnasnet0_5", {}),
        ("squeezenet1_1", {}),
        ("shufflenet_v2_x0_5", {}),
        ("efficientnet_b0", {}),
        ("mobilenet_v3_small", {}),
        ("googlenet", {"init_weights": False}),
        pytest.param("swin_t", {}, marks=pytest.mark.slow),
        pytest.param("vit_b_32", {}, marks=pytest.mark.slow),
    ],
)
def test_classes_come_from_the_weights(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    state = _state(name, classes=11, **options)
    torch.save(state, tmp_path / "w.pth")
    loaded = load_model(name, tmp_path / "w.pth", demo=False)
    assert "num_classes=11" in loaded.reference
    assert _same(loaded, state)
    again = build_architecture(loaded.reference).state_dict()
    assert {key: value.shape for key, value in again.items()} == {
        key: value.shape for key, value in loaded.model.state_dict().items()
    }


def test_densenets_older_names(tmp_path: Path) -> None:
    state = _state("densenet121", classes=5)
    old = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value for name, value in state.items()}
    torch.save(old, tmp_path / "w.pth")
    assert _same(load_model("densenet121", tmp_path / "w.pth", demo=False), state)


@pytest.mark.slow
def test_vits_older_names(tmp_path: Path) -> None:
    state = _state("vit_b_32", classes=5)
    versioned = OrderedDict((name.replace("mlp.0", "mlp.linear_1"), value) for name, value in state.items())
    versioned = OrderedDict((name.replace("mlp.3", "mlp.linear_2"), value) for name, value in versioned.items())
    versioned._metadata = OrderedDict(  # type: ignore[attr-defined]
        (name, {"version": 1}) for name in getattr(state, "_metadata", {})
    )
    torch.save(versioned, tmp_path / "v.pth")
    assert _same(load_model("vit_b_32", tmp_path / "v.pth", demo=False), state)


def test_fingerprint_follows_tensors_and_input_not_code_or_place(plain: str, tmp_path: Path) -> None:
    def fingerprint() -> str:
        return load_model(f"{plain}plain", tmp_path / "w.safetensors", demo=False).fingerprint

    state = load_model(f"{plain}plain", None, demo=False).model.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    seen = [fingerprint(), load_model(f"{plain}plain", None, demo=False).fingerprint]
    assert seen[0] == seen[1]
    state["5.bias"][3] += 1e-3
    save_file(state, tmp_path / "w.safetensors")
    seen.append(fingerprint())
    (tmp_path / "w.json").write_text('{"input_size": [3, 32, 32]}')
    seen.append(fingerprint())
    assert len(set(seen)) == 3
    (tmp_path / "net.py").write_text(f"# a comment\n{PLAIN}")
    assert fingerprint() == seen[-1]
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "net.py").write_text(PLAIN)
    moved = load_model(f"{tmp_path}/moved/net.py:plain", tmp_path / "w.safetensors", demo=False)
    assert moved.fingerprint == seen[-1]


def test_building_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_architecture("torchvision:squeezenet1_1?num_classes=3").state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = build_architecture("torchvision:squeezenet1_1?num_classes=3").state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_damaged_weights(weights: Path, tmp_path: Path) -> None:
    _refused("no such weights file", "mobilenet_v2", tmp_path / "nowhere.pt")
    _refused("no such weights file", "mobilenet_v2", tmp_path)
    content = weights.read_bytes()
    noise = np.random.default_rng(0).bytes(5000)
    for name, damaged in {"cut": content[:-1000], "head": content[:20], "empty": b"", "noise": noise}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(damaged)
        _refused("are no safetensors file", "mobilenet_v2", tmp_path / f"{name}.safetensors")
    torch.save(_state(), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    for name, damaged in {"cut": content[:-1000], "half": content[:5000], "empty": b"", "noise": noise}.items():
        (tmp_path / f"{name}.pt").write_bytes(damaged)
        _refused("are damaged, or hold more than tensors", "mobilenet_v2", tmp_path / f"{name}.pt")


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(os.environ["TRAP"]),)


def test_code_in_a_checkpoint_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    torch.save({"state_dict": _Trap()}, tmp_path / "trap.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Trap()))
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    for name in ("trap", "plain", "module"):
        _refused("code in a checkpoint is never run", "mobilenet_v2", tmp_path / f"{name}.pt")
    assert not (tmp_path / "sprung").exists()


def test_weights_that_hold_something_else(tmp_path: Path) -> None:
    for content, text in (
        ([1, 2], "must hold named tensors, got a list"),
        ({}, "got nothing"),
        ({"a": 2, "b": "c"}, r"only 'a' \(a int\), 'b' \(a str\)"),
    ):
        torch.save(content, tmp_path / "w.pt")
        _refused(text, "mobilenet_v2", tmp_path / "w.pt")


def test_weights_of_another_architecture(weights: Path, tmp_path: Path) -> None:
    _refused(
        r"do not fit torchvision:resnet18\?num_classes=1000: .*102 missing \(first: conv1.weight\), "
        r"262 unknown \(first: ",
        "resnet18",
        weights,
    )
    state = _state()
    state["features.0.0.weight"] = torch.zeros(32, 1, 3, 3)
    state["features.1.conv.1.weight"] = torch.zeros(16, 32, 1, 1, dtype=torch.int8)
    del state["classifier.1.bias"]
    torch.save(state, tmp_path / "w.pt")
    _refused(
        r"1 missing \(first: classifier.1.bias\), "
        r"1 of another shape \(first: features.0.0.weight: expected \[32, 3, 3, 3\], saw \[32, 1, 3, 3\]\), "
        r"1 of another type \(first: features.1.conv.1.weight: torch.int8\)",
        "mobilenet_v2",
        tmp_path / "w.pt",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(weights: Path, value: float, plain: str) -> None:
    state = _state()
    state["features.3.conv.2.weight"][1, :2] = value
    save_file(state, weights)
    _refused(r"features.3.conv.2.weight of .* has 2 NaN or infinite values", "mobilenet_v2", weights)
    state = _state()
    state["features.0.1.running_var"][3] = value
    save_file(state, weights)
    _refused(r"features.0.1.running_var of .* has 1 NaN or infinite values", "mobilenet_v2", weights)
    _refused(r"0.weight of .* has 108 NaN or infinite", f"{plain}broken")


def test_masks_may_be_infinite(plain: str) -> None:
    mask = load_model(f"{plain}masked", None, demo=False).model.get_buffer("mask")
    assert torch.isinf(mask).sum() == 6
    _refused("0.weight is lazy and has no values", f"{plain}lazy")
    _refused("0.weight is on the meta device and has no values", f"{plain}meta")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "no readable JSON"),
        ("[1]", "must hold an object"),
        ('{"input_size": 224}', "input_size must be a list of numbers, got 224"),
        ('{"input_size": []}', "input_size must be a list of numbers"),
        ('{"input_size": [3, 0, 28]}', "input_size must be the shape of one sample"),
        ('{"input_size": [3, 28.5, 28]}', "input_size must be the shape of one sample"),
        ('{"mean": [0.5, 0.5]}', "mobile.json: mean must be 3 numbers, one for each channel"),
        ('{"mean": 0.5}', "mean must be a list of numbers, got 0.5"),
        ('{"std": [0.5, 0.5, 0]}', "std must be above zero"),
        ('{"std": [0.5, 0.5, NaN]}', "NaN where a number is expected"),
        ('{"input_size": [3, 2, 2], "mean": ["a", 0, 0]}', "mean must be a list of numbers"),
    ],
)
def test_a_json_that_will_not_do(weights: Path, content: str, text: str) -> None:
    weights.with_suffix(".json").write_text(content)
    _refused(text, "mobilenet_v2", weights)


def test_without_a_json_the_published_input_holds(weights: Path, tmp_path: Path) -> None:
    weights.with_suffix(".json").unlink()
    loaded = load_model("mobilenet_v2", weights, demo=False)
    assert loaded.input_size == (3, 224, 224)
    assert loaded.normalization == Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert loaded.notes[0].endswith("from torchvision's mobilenet_v2")


def test_factories(plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(f"{plain}half", None, demo=False)
    assert loaded.reference == f"{(tmp_path / 'net.py').resolve()}:half"
    assert (loaded.input_size, loaded.normalization, loaded.notes) == (None, None, ())
    assert loaded.source.endswith("as its factory made it")
    assert not loaded.model.training
    assert {value.dtype for value in loaded.model.parameters()} == {torch.float32}
    save_file({f"module.{k}": v + 1 for k, v in loaded.model.state_dict().items()}, tmp_path / "w.safetensors")
    trained = load_model(f"{plain}plain", tmp_path / "w.safetensors", demo=False)
    assert torch.equal(trained.model.state_dict()["5.bias"], loaded.model.state_dict()["5.bias"] + 1)
    monkeypatch.chdir(tmp_path)
    assert load_model("net.py:plain", None, demo=False).reference == f"{(tmp_path / 'net.py').resolve()}:plain"
    (tmp_path / "own_package_for_test").mkdir()
    (tmp_path / "own_package_for_test" / "nets.py").write_text(PLAIN)
    assert load_model("own_package_for_test.nets:plain", None, demo=False).source.startswith("own_package_for_test")


def test_a_json_beside_the_factory_holds_with_weights_too(plain: str, tmp_path: Path) -> None:
    save_file(load_model(f"{plain}plain", None, demo=False).model.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "net.json").write_text('{"input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}')
    (tmp_path / "w.json").write_text('{"mean": [0.1, 0.2, 0.3]}')
    loaded = load_model(f"{plain}plain", tmp_path / "w.safetensors", demo=False)
    assert loaded.input_size == (3, 32, 32)
    assert loaded.normalization == Normalization((0.1, 0.2, 0.3), (0.2, 0.2, 0.2))
    assert loaded.notes == (
        "input 3x32x32 (from net.json), mean 0.1 0.2 0.3 (from w.json), std 0.2 0.2 0.2 (from net.json)",
    )
    asked = load_model(f"{plain}plain", None, demo=False, input_size=(1, 8, 8))
    assert asked.input_size == (1, 8, 8)
    assert asked.normalization is None  # what is said of three channels does not hold for one
    (tmp_path / "net.json").write_text('{"mean": [0.5]}')
    _refused("net.json says mean but nothing says std; give both", f"{plain}plain")
    (tmp_path / "net.json").write_text('{"input_size": [1, 16000]}')
    assert load_model(f"{plain}plain", None, demo=False).input_size == (1, 16000)


def test_an_architecture_needs_no_weights(plain: str) -> None:
    assert load_model("resnet18", None, demo=True, trained=False).source == "random weights"
    assert load_model("mobilenetv2", None, demo=True, trained=False).input_size == (3, 48, 48)
    assert load_model(f"{plain}plain", None, demo=True, trained=False).input_size is None


def test_a_factory_changes_nothing_for_us(tmp_path: Path) -> None:
    (tmp_path / "rude.py").write_text(
        "import os, torch, warnings\nos.chdir('/')\n"
        "def net():\n    torch.set_default_dtype(torch.float64)\n    torch.set_grad_enabled(False)\n"
        "    warnings.simplefilter('ignore')\n    return torch.nn.Linear(2, 2)\n"
    )
    here, filters = Path.cwd(), list(warnings.filters)
    load_model(f"{tmp_path}/rude.py:net", None, demo=False)
    assert (Path.cwd(), torch.get_default_dtype(), torch.is_grad_enabled()) == (here, torch.float32, True)
    assert list(warnings.filters) == filters


def test_factories_that_fail(plain: str, tmp_path: Path) -> None:
    _refused("no such file: /nowhere/net.py", "/nowhere/net.py:plain")
    _refused("has no function 'other'", f"{plain}other")
    _refused("raised RuntimeError: out of luck$", f"{plain}raising")
    _refused("must return a torch.nn.Module, got a int", f"{plain}no_module")
    _refused("only mobilenet_v2 is there without --data", f"{plain}plain", demo=True)
    _refused("module 'no_such_package.nets' cannot be imported: ModuleNotFoundError", "no_such_package.nets:plain")
    (tmp_path / "odd.py").write_text("def plain(:\n")
    _refused("cannot be imported: SyntaxError", f"{tmp_path}/odd.py:plain")
    (tmp_path / "script.py").write_text("raise SystemExit(2)\n")
    _refused("cannot be imported: SystemExit", f"{tmp_path}/script.py:plain")


def test_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From torch.hub's cache, which here holds weights of our own; without, and without a network, one line."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    _refused(r"published weights of squeezenet1_1 cannot be had .*no network.*pass it with --weights", "squeezenet1_1")
    published = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    state = _state("squeezenet1_1", classes=1000)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    cached = tmp_path / "hub" / "checkpoints" / published.url.rpartition("/")[2]
    torch.save(state, cached)
    loaded = load_model("SqueezeNet1.1", None, demo=False)
    assert _same(loaded, state)
    assert loaded.reference == "torchvision:squeezenet1_1?num_classes=1000"
    assert "published" in loaded.source
    cached.write_bytes(b"nonsense")
    _refused("published weights of squeezenet1_1 cannot be had", "squeezenet1_1")


def test_embedded_model() -> None:
    from mpsearch.sources import demo

    if not Path(demo.weights_path()).is_file():
        pytest.skip("the embedded weights are not there yet")
    loaded = load_model("mobilenetv2", None, demo=True)
    assert loaded.reference == f"torchvision:mobilenet_v2?num_classes={len(demo.CLASSES)}"
    assert loaded.input_size == tuple(demo.INPUT_SIZE)


def _data(loaded: LoadedModel, path: Path, val_samples: int | None) -> DataSource:
    return load_data(
        path,
        input_size=loaded.input_size,
        normalization=loaded.normalization,
        calib_samples=64,
        val_samples=val_samples,
        seed=0,
    )


def _top1(loaded: LoadedModel, data: DataSource) -> float:
    assert data.val is not None
    hits = 0
    with torch.inference_mode():
        for samples, labels in data.val.batches(64):
            hits += int((loaded.model(*samples.leaves).argmax(1) == labels).sum())
    return 100 * hits / len(data.val)


def test_cifar_resnet20_reaches_its_accuracy() -> None:
    if not (DATA / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 images in {DATA}")
    found = list((DATA / "models").glob("*resnet20*.safetensors"))
    loaded = load_model(f"{BENCHMARKS}/resnet20.py:make", found[0], demo=False)
    assert loaded.input_size == (3, 32, 32)
    top1 = _top1(loaded, _data(loaded, DATA / "cifar10", 1000))
    assert top1 == pytest.approx(91.8, abs=2.5)  # stated for all 5,000 (91.58 here); three standard errors


@pytest.mark.slow
def test_mobilenet_v2_reaches_its_accuracy() -> None:
    if not (DATA / "imagenet").is_dir():
        pytest.skip(f"no ImageNet images in {DATA}")
    loaded = load_model("mobilenetv2", DATA / "models" / "mobilenet_v2_imagenet.safetensors", demo=False)
    top1 = _top1(loaded, _data(loaded, DATA / "imagenet", None))
    assert top1 == pytest.approx(77.47, abs=0.16)  # 77.36 here: two images of 1,886 from the stated figure
