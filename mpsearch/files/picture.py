"""A picture on disk: the same bytes for the same figure, and never half of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from hwmodel.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_picture(figure: Figure, path: Path) -> None:
    """Replaces a .png by a figure. Raises InputError where it cannot be written."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    write_whole(path, drawn.getvalue())
