"""Models: an architecture by name or by the user's code, with its weights and the input it expects."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import pickle
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import torch
import torchvision
from torch import Tensor, nn

from hwmodel.errors import InputError
from mpsearch.sources.checkpoints import State, align, find_state
from mpsearch.sources.detectors import NeuralPart, neural_part
from mpsearch.sources.expected import Expected, Known, beside, expected
from mpsearch.sources.factory import call_factory, canonical, factory_file, is_factory
from mpsearch.sources.lazy import initialise
from mpsearch.sources.split import Normalization
from mpsearch.sources.weights import fit_weights, read_weights, require_finite

_TORCHVISION = "torchvision:"
_WITH_AUXILIARY = ("googlenet", "inception_v3")  # classifiers beside the main one, used in training only
_AUXILIARY = re.compile(r"(^|\.)(AuxLogits|aux1|aux2)\.")
_DEMO = "mobilenet_v2"
DETECTORS = tuple(
    name
    for name in torchvision.models.list_models(module=torchvision.models.detection)
    if not name.startswith(("maskrcnn", "keypointrcnn"))
)
_NO_EPSILON = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn")  # their batch norms' published
_OF_CLASSES = re.compile(r"(cls_score|cls_logits|classification_head\.module_list\.0(\.1)?)\.weight$")
AS_THEY_ARE = Normalization((0.0,) * 3, (1.0,) * 3)  # a detector of torchvision normalises its images itself


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A float32 model in eval mode, and what it takes to build and feed it again.

    `reference` rebuilds the architecture by `build_architecture`. `input_size` is the shape of one sample, of images
    (channels, height, width), and `normalization` what becomes of their pixels; both are None where nothing says so.
    `fingerprint` is a sha256 over the architecture's name, input and all tensors, not over the code or where it lies.
    `source` says in one line where the weights came from, `notes` what else a user should know.
    """

    model: nn.Module
    reference: str
    input_size: tuple[int, ...] | None
    normalization: Normalization | None
    fingerprint: str
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Weights:
    """Weights as they were found: their tensors, where from, and notes on how they were found."""

    state: State
    source: str
    notes: tuple[str, ...] = ()


def load_model(
    name: str,
    weights: Path | None,
    *,
    demo: bool,
    weights_key: str | None = None,
    input_size: tuple[int, ...] | None = None,
    trained: bool = True,
) -> LoadedModel:
    """A torchvision classifier by name, or what `file.py:factory` or `package.module:factory` returns.

    `weights` is a safetensors file or a torch checkpoint, `weights_key` says where in it they are if it holds several.
    A JSON beside the factory's file, and one beside the weights, may carry `input_size`, `mean` and `std`: the latter
    is right where both say a thing, and the argument `input_size` above both. Without weights, `demo` takes the
    package's own MobileNetV2, else torchvision's published weights or those that the factory's model comes with. Where
    it need not be `trained`, torchvision's architectures come with random weights instead of published ones. Raises
    InputError where a part is missing, damaged, or does not belong to the others.
    """
    if weights is None and weights_key is not None:
        raise InputError("--weights-key says what to take from a checkpoint; name that with --weights")
    found = None if weights is None else _read(weights, weights_key)
    asked: list[tuple[str, Known]] = [(weights.with_suffix(".json").name, beside(weights))] if weights else []
    if input_size is not None:
        asked.append(("--input", {"input_size": tuple(map(float, input_size))}))
    if is_factory(name):
        if found is None and demo and trained:
            raise InputError(f"only {_DEMO} is there without --data and --weights; give --data for {canonical(name)}")
        return _load_factory(canonical(name), found, asked)
    architecture = _torchvision_name(name)
    if found is None and demo and (trained or architecture == _DEMO):
        return _load_demo(architecture)
    known = {} if architecture in DETECTORS else _published_input(architecture)
    published = (f"torchvision's {architecture}", known)
    options = {}
    if found is None and trained:
        found = _published_weights(architecture)
        options = {"transform_input": 1} if architecture in _WITH_AUXILIARY else {}
        options |= {"no_epsilon": 1} if architecture in _NO_EPSILON else {}
    takes = expected(published, *asked)
    reference = _reference(architecture, {} if found is None else found.state, takes, **options)
    return _assemble(reference, found, takes, "random weights")


def _read(path: Path, key: str | None) -> _Weights:
    state, notes = find_state(read_weights(path), str(path), key)
    return _Weights(state, str(path), notes)


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
            if name in DETECTORS:
                options["weights_backbone"] = None
            no_epsilon = bool(options.pop("no_epsilon", 0))
            model = torchvision.models.get_model(_torchvision_name(name), weights=None, **options)
            if no_epsilon:
                torchvision.models.detection._utils.overwrite_eps(model, 0.0)
        elif is_factory(reference):
            model = call_factory(reference)
            if isinstance(model, torch.export.ExportedProgram):
                model = model.module()
        else:
            raise InputError(f"a model reference looks like torchvision:NAME or file.py:factory, got {reference!r}")
    if not isinstance(model, nn.Module):
        raise InputError(f"{reference}: the factory must return a torch.nn.Module, got a {type(model).__name__}")
    model = neural_part(model)
    # An exported module is in the mode that it was exported in, and says so.
    with contextlib.suppress(NotImplementedError):
        model.eval()
    return model.float()


def _load_factory(reference: str, weights: _Weights | None, asked: list[tuple[str, Known]]) -> LoadedModel:
    file = factory_file(reference)
    known = [] if file is None else [(file.with_suffix(".json").name, beside(file))]
    return _assemble(reference, weights, expected(*known, *asked), f"{reference}, as its factory made it")


def _load_demo(architecture: str) -> LoadedModel:
    if architecture != _DEMO:
        raise InputError(f"only {_DEMO} is there without --data and --weights; give --data for {architecture}")
    from mpsearch.sources import demo

    state, _ = find_state(read_weights(Path(demo.weights_path())), "the embedded weights")
    takes = Expected(demo.INPUT_SIZE, Normalization(demo.MEAN, demo.STD), "")
    weights = _Weights(state, "the embedded weights")
    return _assemble(_reference(architecture, state, takes), weights, takes, weights.source)


def _published_weights(architecture: str) -> _Weights:
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
    return _Weights(find_state(loaded, source)[0], source)


def _torchvision_name(name: str) -> str:
    """The registered name of a classifier, however it is spelt. Raises InputError with what comes near."""
    names: list[str] = [*torchvision.models.list_models(module=torchvision.models), *DETECTORS]
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


def _reference(architecture: str, state: Mapping[str, Tensor], takes: Expected, **options: int) -> str:
    """The reference of a torchvision model with as many classes as the weights have, and their image size."""
    if architecture.startswith("vit_") and takes.size is not None:  # its position embedding is made for one image size
        options["image_size"] = takes.size[1]
    reference = f"{_TORCHVISION}{architecture}"
    built = build_architecture(f"{reference}?{urlencode(options)}")
    own = built.state_dict()
    classifier = [name for name, value in own.items() if value.dim() > 1][-1]
    classes = len(own[classifier])
    if isinstance(built, NeuralPart):
        classifier = next(name for name in own if _OF_CLASSES.search(name))
        classes = built.classes
    named, _ = align(State(state), own.keys(), architecture)
    if classifier in named and named[classifier].dim() == own[classifier].dim():
        classes = classes * len(named[classifier]) // len(own[classifier])  # of a detector, for each of the anchors
    return f"{reference}?{urlencode({'num_classes': classes} | options)}"


def _published_input(architecture: str) -> Known:
    """What torchvision's published weights of this architecture expect."""
    transforms = torchvision.models.get_model_weights(architecture).DEFAULT.transforms()
    side = float(transforms.crop_size[0])
    return {"input_size": (3.0, side, side), "mean": tuple(transforms.mean), "std": tuple(transforms.std)}


def _assemble(reference: str, weights: _Weights | None, takes: Expected, source: str) -> LoadedModel:
    model = build_architecture(reference)
    if isinstance(model, NeuralPart):
        takes = Expected(takes.size, AS_THEY_ARE, "")
    notes = [takes.note] if takes.note else []
    notes += initialise(model, takes.size, reference)
    if weights is not None:
        source = weights.source
        state = State(weights.state)
        if reference.removeprefix(_TORCHVISION).partition("?")[0] in _WITH_AUXILIARY:
            for name in [name for name in state if _AUXILIARY.search(name)]:
                del state[name]
        if hasattr(weights.state, "_metadata"):
            state._metadata = weights.state._metadata  # type: ignore[attr-defined]
        notes += [*weights.notes, *fit_weights(model, state, reference, source)]
    require_finite(model, source)
    fingerprint = _fingerprint(model, reference, takes)
    return LoadedModel(model, reference, takes.size, takes.normalization, fingerprint, source, tuple(notes))


def in_memory(model: nn.Module) -> LoadedModel:
    """A module that is there already, called by its class. Raises InputError where a weight is NaN."""
    name = type(model).__qualname__
    model = neural_part(model)
    require_finite(model, name)
    fingerprint = _fingerprint(model, name, Expected(None, None, ""))
    return LoadedModel(model, name, None, None, fingerprint, f"a {name} in memory")


def _fingerprint(model: nn.Module, reference: str, takes: Expected) -> str:
    code, colon, name = reference.rpartition(":")
    digest = hashlib.sha256(f"{Path(code).name}{colon}{name}\n{takes.size} {takes.normalization}\n".encode())
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
