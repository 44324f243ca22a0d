"""What commands share: the console, the run folder, a picture, and errors of writing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TextIO

if TYPE_CHECKING:
    from mpsearch.files.folder import RunFolder
    from mpsearch.show.console import Console


Rest = ParamSpec("Rest")
_apart: list[TextIO] = []  # the stream of results, while stdout leads to stderr
_ends: list[contextlib.ExitStack] = []  # what is let go of when the command ends


def results_apart(command: Callable[Rest, None]) -> Callable[Rest, None]:
    """A command during which stdout holds what `emit` and the console's `out` write alone.

    Whatever else is printed meanwhile, by user code, by libraries or by programs that they start, goes to stderr.
    """

    @wraps(command)
    def call(*args: Rest.args, **kwargs: Rest.kwargs) -> None:
        with _results() as stream, contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as end:
            _apart.append(stream)
            _ends.append(end)
            try:
                command(*args, **kwargs)
            finally:
                _ends.pop()
                _apart.pop()
                stream.flush()

    return call


@contextlib.contextmanager
def _results() -> Iterator[TextIO]:
    """Stdout as a stream of its own, the process's file descriptor 1 being a copy of 2."""
    stdout = sys.stdout
    try:
        own = stdout.fileno() == 1
    except (OSError, AttributeError, io.UnsupportedOperation):
        own = False
    if not own:  # a test or a program that calls us has put something else in its place
        yield stdout
        return
    stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(kept, "w", encoding=stdout.encoding, errors=stdout.errors, closefd=False) as stream:
            yield stream
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def emit(text: str) -> None:
    """Writes a result to stdout, as it is."""
    (_apart[-1] if _apart else sys.stdout).write(text)


def emit_json(data: Any) -> None:
    """Writes a result to stdout as JSON."""
    emit(json.dumps(data, indent=1) + "\n")


def console() -> Console:
    """Where commands write to."""
    from mpsearch.show.console import Console, results

    return Console(out=results(_apart[-1] if _apart else sys.stdout))


def run_folder(out: Path | None, model: str) -> RunFolder:
    """The folder that was named, or that of the model."""
    from mpsearch.files.folder import RunFolder

    return RunFolder(out or Path("runs") / model.rsplit(":", 1)[-1])


def hold(folder: RunFolder, wait: bool) -> RunFolder:
    """The folder, made and kept from other writers until the command ends."""
    _ends[-1].enter_context(folder.held(wait, console().note))
    return folder


def hold_file(path: Path, wait: bool) -> None:
    """Keeps other writers from a file that a command takes long to make, until the command ends."""
    from mpsearch.files.lock import held_file

    _ends[-1].enter_context(held_file(path, wait, console().note))
