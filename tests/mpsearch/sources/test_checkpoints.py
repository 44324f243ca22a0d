"""Checkpoints as training leaves them behind: found, or refused with what is there."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwmodel.errors import InputError
from mpsearch.sources.checkpoints import State, find_state
from mpsearch.sources.weights import fit_weights, read_weights

Wrap = Callable[[dict[str, Tensor]], Any]


def _net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5))


class Holder(nn.Module):
    """As training code holds a network."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _net()


def _state(seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.rand(value.shape) for name, value in _net().state_dict().items() if value.is_floating_point()}


def _with(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def _loaded(path: Path, content: Any, key: str | None = None, net: nn.Module | None = None) -> tuple[State, list[str]]:
    torch.save(content, path / "w.pt")
    net = net or _net()
    state, found = find_state(read_weights(path / "w.pt"), "w.pt", key)
    notes = fit_weights(net, state, "net", "w.pt")
    return net.state_dict(), [*found, *notes]  # type: ignore[return-value]


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(999)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
LIGHTNING = {"pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 1e-3}, "loops": {"x": {"y": torch.ones(9)}}}
LAYOUTS: dict[str, tuple[Wrap, str]] = {
    "bare": (lambda s: s, ""),
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3, "optimizer": OPTIMIZER}, "'state_dict'"),
    "model": (lambda s: {"model": s, "scheduler": {"last_lr": [0.1]}}, "'model'"),
    "net": (lambda s: {"net": _with("module.", s), "acc": 93.1}, "'module.'"),
    "model_state_dict": (lambda s: {"model_state_dict": s, "loss": torch.tensor(0.3)}, "'model_state_dict'"),
    "nested": (lambda s: {"state": {"model": s}}, "'state.model'"),
    "ema alone": (lambda s: {"state_dict_ema": s, "epoch": 3}, "'state_dict_ema'"),
    "timm": (lambda s: {"state_dict": s, "arch": "net", "args": argparse.Namespace(lr=0.1)}, "'state_dict'"),
    "compiled": (lambda s: _with("_orig_mod.", s), "'_orig_mod.'"),
    "compiled and parallel": (lambda s: _with("module._orig_mod.", s), "'module.'"),
    "compiled part": (lambda s: {name.replace("0.", "0._orig_mod.", 1): v for name, v in s.items()}, "'_orig_mod.'"),
    "lightning": (
        lambda s: {"state_dict": {**_with("model.", s), "criterion.weight": torch.ones(5)}, **LIGHTNING},
        "1 other tensors are left out (first: criterion.weight)",
    ),
    "a common prefix": (lambda s: _with("backbone.body.", s), "'backbone.body.'"),
    "averaged": (lambda s: {**_with("module.", s), "n_averaged": torch.tensor(7)}, "1 counters"),
    "profiled": (lambda s: {**s, "total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)}, "2 counters"),
    "numpy numbers": (
        lambda s: {"state_dict": s, "best": np.float64(0.93), "lr": np.float32(0.1), "step": np.int64(3)},
        "'state_dict'",
    ),
    "numpy arrays": (lambda s: {name: value.numpy() for name, value in s.items()}, ""),
    "beside numbers": (lambda s: {**s, "epoch": 3}, "no tensors and left out (first: epoch)"),
    "a small loss beside": (lambda s: {"model": s, "criterion": {"weight": torch.ones(3)}}, "'model'"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    wrap, said = LAYOUTS[layout]
    state, notes = _loaded(tmp_path, wrap(_state()))
    for name, value in _state().items():
        assert torch.equal(state[name], value)
    assert said in " | ".join(notes)
    assert bool(notes) == bool(said)


def test_a_network_that_is_held_gets_the_prefix(tmp_path: Path) -> None:
    state, notes = _loaded(tmp_path, _state(), net=Holder())
    assert torch.equal(state["model.0.weight"], _state()["0.weight"])
    assert notes == ["names in w.pt get the prefix 'model.'"]
    state, notes = _loaded(tmp_path, _with("model.", _state()), net=Holder())
    assert torch.equal(state["model.0.weight"], _state()["0.weight"])
    assert notes == []


def test_several_networks_are_listed(tmp_path: Path) -> None:
    one, two = _state(1), _state(2)
    both = {"model": one, "model_ema": {"module": two}}
    with pytest.raises(InputError, match=r"model \(8 tensors\), model_ema.module \(8 tensors\).*--weights-key"):
        _loaded(tmp_path, both)
    for key, wanted in (("model", one), ("model_ema", None), ("model_ema.module", two)):
        if wanted is None:
            with pytest.raises(InputError, match="--weights-key model_ema holds no tensors, but 'module'"):
                _loaded(tmp_path, both, key)
            continue
        assert torch.equal(_loaded(tmp_path, both, key)[0]["0.weight"], wanted["0.weight"])
    pair = {"state_dict": {**_with("student.", one), **_with("teacher.", two)}}
    with pytest.raises(InputError, match=r"prefixes 'student\.', 'teacher\.'; say which: --weights-key"):
        _loaded(tmp_path, pair)
    assert torch.equal(_loaded(tmp_path, pair, "state_dict.teacher")[0]["0.weight"], two["0.weight"])
    with pytest.raises(InputError, match="nothing is at --weights-key ema; there are state_dict"):
        _loaded(tmp_path, pair, "ema")


def test_versions_of_modules_go_along(tmp_path: Path) -> None:
    class Renamed(nn.Module):
        """Its tensor was called `old` in version 1."""

        _version = 2

        def __init__(self) -> None:
            super().__init__()
            self.new = nn.Parameter(torch.zeros(3))

        def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
            if metadata.get("version", 1) < 2:
                state[f"{prefix}new"] = state.pop(f"{prefix}old")
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    net = nn.Sequential(Renamed(), nn.Linear(2, 2), nn.Linear(2, 2))
    state = OrderedDict(_with("module.", net.state_dict()))
    state["module.0.old"] = state.pop("module.0.new") + 1
    state._metadata = OrderedDict({"module.0": {"version": 1}})  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "w.pt")
    found, _ = find_state(read_weights(tmp_path / "w.pt"), "w.pt")
    fit_weights(net, found, "net", "w.pt")
    assert torch.equal(net.state_dict()["0.new"], torch.ones(3))


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        state, _ = _loaded(tmp_path, {name: value.to(kind) for name, value in _state().items()})
        assert torch.equal(state["0.weight"], _state()["0.weight"].to(kind).float())


def test_nothing_that_fits_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"do not fit net: .*8 missing .*1 unknown \(first: other\)"):
        _loaded(tmp_path, {"other": torch.ones(3)})
    with pytest.raises(InputError, match="'net' \\(a dict\\)"):
        find_state({"net": {"epoch": 3}}, "w.pt")


def test_what_was_refused_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": _state(), "config": Holder}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"code in a checkpoint is never run: .*Holder"):
        read_weights(tmp_path / "w.pt")
