"""What commands share: the console, the run folder, a picture, and errors of writing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hwmodel import InputError

if TYPE_CHECKING:
    from hwmodel import LayerTable
    from mpsearch.files.folder import RunFolder
    from mpsearch.search.baselines import Answer
    from mpsearch.search.front import ParetoFront
    from mpsearch.show.console import Console


def console() -> Console:
    """Where commands write to."""
    from mpsearch.show.console import Console

    return Console()


def run_folder(out: Path | None, model: str) -> RunFolder:
    """The folder that was named, or that of the model."""
    from mpsearch.files.folder import RunFolder

    return RunFolder(out or Path("runs") / model.rsplit(":", 1)[-1])


def draw(folder: RunFolder, found: ParetoFront, table: LayerTable, beside: Sequence[Answer]) -> None:
    """Draws `front.png`."""
    from mpsearch.run.artifacts import finished_configs
    from mpsearch.show.plots import draw_front, front_info

    info = front_info(found, found.best(), dict(found.budgets), table, beside, finished_configs(folder))
    draw_front(info, folder.file("front.png"))


@contextlib.contextmanager
def writing(path: Path, option: str) -> Iterator[None]:
    """Turns what the system says of a file that cannot be written into bad input to `option`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); name another file with {option}") from None
