"""Models: an architecture by name or by the user's code, with its weights and the input it expects."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import math
import pickle
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import torch
import torchvision
from torch import Tensor, nn

from hwmodel.errors import InputError
from mpsearch.sources.factory import call_factory, canonical, factory_file, is_factory
from mpsearch.sources.weights import State, fit_weights, read_weights, tidy

_TORCHVISION = "torchvision:"
_WITH_AUXILIARY = ("googlenet", "inception_v3")  # classifiers beside the main one, used in training only
_AUXILIARY = re.compile(r"(AuxLogits|aux1|aux2)\.")
_DEMO = "mobilenet_v2"


@dataclass(frozen=True, slots=True)
class _Input:
    """The image that a model expects: (channels, height, width), and (x / 255 - mean) / std per channel."""

    size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A float32 model in eval mode, and what it takes to build and feed it again.

    `reference` rebuilds the architecture by `build_architecture`. `input_size` is (channels, height, width); pixels in
    0…1 are normalised by `mean` and `std`. `fingerprint` is a sha256 over reference, input and all tensors. `source`
    says in one line where the weights came from. `classes` is the number of logits.
    """

    model: nn.Module
    reference: str
    input_size: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    source: str
    classes: int


def load_model(name: str, weights: Path | None, *, demo: bool) -> LoadedModel:
    """A torchvision classifier by name, or what `file.py:factory` or `package.module:factory` returns.

    `weights` is a safetensors file or a torch checkpoint; a JSON beside it (same stem) may carry `input_size`, `mean`
    and `std`. Without weights, `demo` takes the package's own MobileNetV2, else torchvision's published weights or
    those that the factory's model comes with (with the JSON beside the factory's file). Raises InputError where a part
    is missing, damaged, or does not belong to the others.
    """
    if is_factory(name):
        return _load_factory(canonical(name), weights, demo)
    architecture = _torchvision_name(name)
    if weights is not None:
        state = read_weights(weights)
        expected = _beside(weights, _published_input(architecture))
        return _assemble(_reference(architecture, state, expected), state, expected, str(weights))
    return _load_demo(architecture) if demo else _load_published(architecture)


def build_architecture(reference: str) -> nn.Module:
    """The module that a reference describes, in eval mode and float32; its weights mean nothing, but are repeatable.

    Raises InputError where the reference is unknown or its factory fails.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if reference.startswith(_TORCHVISION):
            name, _, query = reference.removeprefix(_TORCHVISION).partition("?")
            options: dict[str, Any] = {key: int(value) for key, value in parse_qsl(query)}
            if name in _WITH_AUXILIARY:
                options |= {"aux_logits": False, "init_weights": False}
            model = torchvision.models.get_model(_torchvision_name(name), weights=None, **options)
        elif is_factory(reference):
            model = call_factory(reference)
        else:
            raise InputError(f"a model reference looks like torchvision:NAME or file.py:factory, got {reference!r}")
    if not isinstance(model, nn.Module):
        raise InputError(f"{reference}: the factory must return a torch.nn.Module, got a {type(model).__name__}")
    return model.float().eval()


def _load_factory(reference: str, weights: Path | None, demo: bool) -> LoadedModel:
    if weights is None and demo:
        raise InputError(f"only {_DEMO} is there without --data and --weights; give --data for {reference}")
    state = None if weights is None else read_weights(weights)
    beside = weights or factory_file(reference)
    expected = _beside(beside, _Input()) if beside else _Input()
    return _assemble(reference, state, expected, str(weights or f"{reference}, as its factory made it"))


def _load_demo(architecture: str) -> LoadedModel:
    if architecture != _DEMO:
        raise InputError(f"only {_DEMO} is there without --data and --weights; give --data for {architecture}")
    from mpsearch.sources import demo

    state = read_weights(Path(demo.weights_path()))
    expected = _Input(demo.INPUT_SIZE, demo.MEAN, demo.STD)
    return _assemble(_reference(architecture, state, expected), state, expected, "the embedded weights")


def _load_published(architecture: str) -> LoadedModel:
    published = torchvision.models.get_model_weights(architecture).DEFAULT
    try:
        # torch.hub announces downloads on stdout, which belongs to our results.
        with contextlib.redirect_stdout(sys.stderr):
            loaded = torch.hub.load_state_dict_from_url(
                published.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the published weights of {architecture} cannot be had ({published.url}: {reason}); "
            "fetch the file where there is a network and pass it with --weights FILE"
        ) from error
    source = f"torchvision's published weights {published}"
    state, expected = tidy(loaded, source), _published_input(architecture)
    options = {"transform_input": 1} if architecture in _WITH_AUXILIARY else {}
    return _assemble(_reference(architecture, state, expected, **options), state, expected, source)


def _torchvision_name(name: str) -> str:
    """The registered name of a classifier, however it is spelt. Raises InputError with what comes near."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    if name in names:
        return name
    plain = {known: re.sub(r"[^a-z0-9]", "", known) for known in names}
    wanted = re.sub(r"[^a-z0-9]", "", name.lower())
    same = [known for known in names if plain[known] == wanted]
    if len(same) == 1:  # two differ by an underscore only: regnet_x_16gf and regnet_x_1_6gf
        return same[0]
    near = same or [known for known in names if plain[known] in difflib.get_close_matches(wanted, plain.values())]
    hint = f"did you mean {' or '.join(near)}?" if near else "expected a torchvision classifier, such as resnet18;"
    raise InputError(f"unknown model {name!r}; {hint} a model of your own is given as file.py:factory")


def _reference(architecture: str, state: State, expected: _Input, **options: int) -> str:
    """The reference of a torchvision model with as many classes as the weights have, and their image size."""
    if architecture.startswith("vit_"):  # its position embedding is made for one image size
        options["image_size"] = expected.size[1]
    reference = f"{_TORCHVISION}{architecture}"
    own = build_architecture(f"{reference}?{urlencode(options)}").state_dict()
    classifier = [name for name, value in own.items() if value.dim() > 1][-1]
    classes = len(own[classifier])
    if classifier in state and state[classifier].dim() == own[classifier].dim():
        classes = len(state[classifier])
    return f"{reference}?{urlencode({'num_classes': classes} | options)}"


def _published_input(architecture: str) -> _Input:
    """What torchvision's published weights of this architecture expect."""
    transforms = torchvision.models.get_model_weights(architecture).DEFAULT.transforms()
    side = int(transforms.crop_size[0])
    return _Input((3, side, side), tuple(transforms.mean), tuple(transforms.std))


def _beside(path: Path, default: _Input) -> _Input:
    """What the JSON beside a file says about the input; the default where it says nothing. Raises InputError."""
    path = path.with_suffix(".json")
    if not path.is_file():
        return default
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no readable JSON file ({error}); mend or remove it") from error
    if not isinstance(known, dict):
        raise InputError(f"{path} must hold an object with input_size, mean and std; got a {type(known).__name__}")
    if "input_size" in known:
        channels, height, width = (int(value) for value in _three(path, known, "input_size"))
        if channels != 3 or min(height, width) < 1 or [channels, height, width] != known["input_size"]:
            raise InputError(f"{path}: input_size must be [3, height, width], got {known['input_size']}")
        default = replace(default, size=(channels, height, width))
    if "mean" in known:
        default = replace(default, mean=_three(path, known, "mean"))
    if "std" in known:
        default = replace(default, std=_three(path, known, "std"))
        if min(default.std) <= 0:
            raise InputError(f"{path}: std must be above zero, got {known['std']}")
    return default


def _three(path: Path, known: dict[str, Any], key: str) -> tuple[float, float, float]:
    values = known[key]
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    ):
        raise InputError(f"{path}: {key} must be three numbers, got {json.dumps(values)}")
    return float(values[0]), float(values[1]), float(values[2])


def _assemble(reference: str, state: State | None, expected: _Input, source: str) -> LoadedModel:
    model = build_architecture(reference)
    if state is not None:
        if reference.removeprefix(_TORCHVISION).partition("?")[0] in _WITH_AUXILIARY:
            for name in [name for name in state if _AUXILIARY.match(name)]:
                del state[name]
        fit_weights(model, state, reference, source)
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise InputError(f"{source}: weights must be finite, but {name} has NaN or infinite values")
    return LoadedModel(
        model,
        reference,
        expected.size,
        expected.mean,
        expected.std,
        _fingerprint(model, reference, expected),
        source,
        _count_classes(model, reference, expected.size),
    )


def _count_classes(model: nn.Module, reference: str, size: tuple[int, int, int]) -> int:
    """The number of logits, found by one forward pass of an empty image. Raises InputError where it gives none."""
    shape = "x".join(map(str, size))
    try:
        with torch.inference_mode():
            output = model(torch.zeros(1, *size))
    except Exception as error:  # whatever the user's code raises
        first = (str(error).strip().splitlines() or [""])[0]
        raise InputError(f"{reference} fails on an image of {shape}: {type(error).__name__}: {first}") from error
    if not isinstance(output, Tensor) or output.dim() != 2:
        seen = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise InputError(f"{reference} must give logits of shape [images, classes], got {seen}")
    return int(output.shape[1])


def _fingerprint(model: nn.Module, reference: str, expected: _Input) -> str:
    digest = hashlib.sha256(f"{reference}\n{expected}\n".encode())
    code = factory_file(reference)
    if code is not None:
        digest.update(code.read_bytes())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
