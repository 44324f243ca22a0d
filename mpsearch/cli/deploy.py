"""Taking finished models elsewhere: files for other runtimes, and checking them there."""

from __future__ import annotations

from pathlib import Path

from hwmodel import InputError
from mpsearch.cli.common import console

MODEL_FORMATS = ("onnx",)


def export_finished(folder: Path, form: str, out: Path | None, config: str | None, packed: bool, force: bool) -> None:
    """Writes a finished model of a run folder in the format `form`."""
    from mpsearch.deploy.export import export_model
    from mpsearch.deploy.finished import finished_model

    if out is None:
        raise InputError(f"--format {form} needs --out FILE")
    terminal = console()
    model = finished_model(folder, config, terminal)
    written = export_model(model, form, out, force=force, packed=packed)
    for note in written.notes:
        terminal.note(note)
    beside = model.record["size_bytes"]
    terminal.out.print(f"{out}: {written.size_bytes:,} bytes (packed file {beside:,})", markup=False)
