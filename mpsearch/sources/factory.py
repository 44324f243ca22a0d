"""`file.py:factory` and `package.module:factory`: the user's own code by name."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from hwmodel.errors import InputError

T = TypeVar("T")


def is_factory(text: str) -> bool:
    """Whether the text is meant as a factory: it has a colon after a module or file name."""
    source, colon, name = text.rpartition(":")
    return bool(colon and source and name.isidentifier())


def canonical(reference: str) -> str:
    """The reference with a file's path made absolute, so that it means the same from any folder."""
    source, _, name = reference.rpartition(":")
    return f"{Path(source).expanduser().resolve()}:{name}" if source.endswith(".py") else reference


def factory_file(reference: str) -> Path | None:
    """The Python file of a `file.py:factory` reference; None for a `package.module:factory`."""
    source = reference.rpartition(":")[0]
    return Path(source) if source.endswith(".py") else None


def call_factory(reference: str) -> Any:
    """Imports the file or module and returns what its factory returns, called without arguments.

    A file sees its own folder on the import path, a module the working directory. Raises InputError where the file,
    the module or the factory is missing, or either raises.
    """
    source, _, name = reference.rpartition(":")
    factory = getattr(import_source(source), name, None)
    if not callable(factory):
        raise InputError(f"{reference}: {source} has no function {name!r}")
    with contained():
        return guarded(factory, f"{reference}: the factory raised")


def import_source(source: str) -> ModuleType:
    """The module that a reference names before its colon: a file, or a module by its dotted name."""
    if not source.endswith(".py"):
        with _on_import_path(Path.cwd()), contained():
            return guarded(lambda: importlib.import_module(source), f"module {source!r} cannot be imported:")
    path = Path(source)
    if not path.is_file():
        raise InputError(f"no such file: {path}; a factory is given as file.py:name or package.module:name")
    # Registered under a name of its own (dataclasses look themselves up), one per path.
    name = f"factory_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    with _on_import_path(path.parent), contained():
        guarded(lambda: loader.exec_module(module), f"{path} cannot be imported:")
    return module


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Puts back what the user's code may change for ours: working folder, default dtype, gradient mode, warnings."""
    folder, dtype, gradients = Path.cwd(), torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)


@contextlib.contextmanager
def _on_import_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def guarded(call: Callable[[], T], what: str) -> T:
    """Runs the user's code; whatever it raises becomes one line, with the cause kept for `--debug`."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise InputError(f"{what} {type(error).__name__}: {first}") from error
