"""Lazy modules: what they need before they have weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from hwmodel.errors import InputError
from recon.graph.refusal import first_line


def initialise(model: nn.Module, size: tuple[int, ...] | None, name: str) -> list[str]:
    """Runs a lazy model once on zeros of the shape `size` of a sample, which gives its layers their shapes and values.

    Returns a note where it did. Without a known size it is left as it is. Raises InputError where the model does not
    take that shape.
    """
    if size is None or not any(isinstance(module, LazyModuleMixin) for module in model.modules()):
        return []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            model(torch.zeros(2, *size))
        except Exception as error:  # the user's code may raise anything
            raise InputError(
                f"{name} is lazy and does not run on input {[2, *size]}: {first_line(error)}; correct --input"
            ) from error
    return ["the lazy layers of the model got their shapes by running it once on zeros"]
