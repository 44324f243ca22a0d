"""Why a model cannot be captured: the operation, the line of the user's code, and what to wrap instead."""

from __future__ import annotations

import contextlib
import io
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils._pytree import tree_map

from recon.graph.samples import Call, named_parts

FIXED = (1, 2, 4, 8, 16, 32, 64)  # numbers of samples that networks are written or exported for
CONSTANT = (
    "its code makes the number of samples a constant; write x.shape[0] for len(x), and -1 for the samples in shapes"
)
KNOWN = {  # what torch says, and what is to be done
    "your code specialized it to be a constant": CONSTANT,
    "fake tensor in the exported program constant": "its code reads x.data, which hides the tensor; write x.detach()",
}


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """While it is open, nothing is said: the user's code runs, and torch prints graphs that it cannot export."""
    silence = io.StringIO()
    streams = contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence)
    with warnings.catch_warnings(), torch.no_grad(), streams[0], streams[1]:
        warnings.simplefilter("ignore")
        yield


def why_not(model: nn.Module, call: Call, name: str, error: Exception) -> str:
    """One line: what stands in the way of the export, where it is in the user's code, and what to wrap."""
    args, kwargs = call
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as plain:
        if (count := _only_for(model, call)) is not None:
            return f"{name} cannot be exported: it runs on batches of {count} alone, as {CONSTANT}"
        parts = named_parts(kwargs or args).items()
        sizes = ", ".join(f"{'input' if key in ('', '0') else key} {list(leaf.shape)}" for key, leaf in parts)
        return f"{name} does not run on {sizes}: {first_line(plain)}{_user_line(plain)}"
    for sign, hint in KNOWN.items():
        if sign in str(error):
            return f"{name} cannot be exported: {hint}"
    part = _exportable_part(model, call)
    hint = (
        f"its submodule {part!r} can be exported: give that one, or wrap the model so that it returns what that does"
        if part
        else "wrap the part of the model before it, or write it with torch operations on whole batches"
    )
    return f"{name} cannot be exported: {first_line(error)}{_user_line(error)}; {hint}"


def _only_for(model: nn.Module, call: Call) -> int | None:
    """The number of samples that the model runs on, where it runs on one number only; None where on none."""
    for count in FIXED:
        few = tree_map(lambda leaf, count=count: leaf[:1].expand(count, *leaf.shape[1:]).clone(), call)
        try:
            with quiet_export():
                model(*few[0], **few[1])
        except Exception:
            continue
        return count
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = next((line for line in lines if not line.startswith(("from user code", "Traceback"))), "")
    return f"{type(error).__name__}: {first}"[:300] if first else type(error).__name__


def _user_line(error: BaseException) -> str:
    """The innermost line outside of torch that an error passed through."""
    inside = str(Path(torch.__file__).parent)
    here = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((inside, here, "<"))]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _exportable_part(model: nn.Module, call: Call) -> str | None:
    """The submodule with most of the parameters, if it can be exported for what it receives."""
    seen: dict[str, Call] = {}
    args, kwargs = call

    def keep(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs: seen.setdefault(path, (args, kwargs)) and None

    modules = [(path, module) for path, module in model.named_children()]
    hooks = [module.register_forward_pre_hook(keep(path), with_kwargs=True) for path, module in modules]
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(parameter.numel() for parameter in model.parameters())
    for path, module in modules:
        if path not in seen or 2 * sum(parameter.numel() for parameter in module.parameters()) <= total:
            continue
        try:
            with quiet_export():
                torch.export.export(module, *seen[path], strict=False)
        except Exception:
            continue
        return path
    return None
