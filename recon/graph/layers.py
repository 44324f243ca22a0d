"""What one forward pass calls: every layer with its shapes, and who reads the layers' outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Layer = nn.Conv2d | nn.Linear


@contextmanager
def watched(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """While it is open, every call of `modules` is shown to `see`: the name, the input and the output."""

    def show(name: str, _: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
        see(name, args[0], z)

    hooks = [module.register_forward_hook(partial(show, name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def keep_outputs(layers: Mapping[str, Layer]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """While it is open, every call of `layers`: the name, the input and the output, which can be differentiated by."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def keep(name: str, x: Tensor, z: Tensor) -> None:
        calls.append((name, x, z if z.requires_grad else z.requires_grad_()))

    with watched(layers, keep):
        yield calls


def is_layer(module: nn.Module) -> bool:
    """A convolution or linear layer that computes what its class computes, so that its weight can be quantized."""
    forward = type(module).forward
    return any(isinstance(module, kind) and forward is kind.forward for kind in (nn.Conv2d, nn.Linear))


def apply_weight(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `layer` would give for inputs x with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    output: Tensor = layer._conv_forward(x, weight, bias)
    return output


@dataclass(frozen=True, slots=True)
class Call:
    """The shapes that went into one call of a layer and came out of it."""

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Calls:
    """One forward pass, by module name (the first one where a module has several).

    `layers` holds the calls of every layer, in execution order. `counts` are calls per module. `norm_inputs` maps a
    batch norm to the layer whose output is, as the very same tensor, its input. `output_reads` counts the operations
    that read a layer's outputs, `parameter_reads` those that read a parameter.
    """

    layers: dict[str, list[Call]]
    counts: Counter[str]
    norm_inputs: dict[str, str]
    output_reads: Counter[str]
    parameter_reads: Counter[str]


def record_calls(model: nn.Module, x: Tensor) -> Calls:
    """Runs model(x) once and tells what was called. Raises whatever the model raises."""
    recorder = _Recorder(model)
    hooks = [hook for name, module in model.named_modules() for hook in recorder.watch(name, module)]
    try:
        with torch.no_grad(), recorder:
            result = model(x)
        recorder.read(result)
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.calls


class _Recorder(TorchFunctionMode):
    """Sees every torch operation that returns a tensor, and what it read."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls = Calls({}, Counter(), {}, Counter(), Counter())
        self.parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        # The tensors are kept, so that no later one can take over an id.
        self.outputs: dict[int, tuple[str, Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            self.read((args, kwargs))
        return result

    def read(self, values: Any) -> None:
        for leaf in map(id, tree_leaves(values)):
            if leaf in self.outputs:
                self.calls.output_reads[self.outputs[leaf][0]] += 1
            if leaf in self.parameters:
                self.calls.parameter_reads[self.parameters[leaf]] += 1

    def watch(self, name: str, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        hooks = [module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)]
        if is_layer(module):
            hooks.append(module.register_forward_hook(partial(self._leave, name), with_kwargs=True))
        return hooks

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.counts[name] += 1
        source = self.outputs.get(id(_first(args, kwargs)))
        if source and isinstance(module, nn.modules.batchnorm._BatchNorm):
            self.calls.norm_inputs[name] = source[0]

    def _leave(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        x = _first(args, kwargs)
        self.calls.layers.setdefault(name, []).append(Call(tuple(x.shape), tuple(output.shape)))
        self.outputs[id(output)] = name, output


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("input")
