"""Taking finished models elsewhere: files for other runtimes, and checking them there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwmodel import InputError
from mpsearch.cli.arguments import Json
from mpsearch.cli.common import console, emit_json

MODEL_FORMATS = ("onnx", "tflite", "c", "qonnx", "pt2e", "pte", "aimet")


def export_finished(
    folder: Path, form: str, out: Path | None, config: str | None, packed: bool, int4: bool, force: bool
) -> None:
    """Writes a finished model of a run folder in the format `form`."""
    from mpsearch.deploy.export import Choices, export_model
    from mpsearch.deploy.finished import finished_model

    if out is None:
        raise InputError(f"--format {form} needs --out FILE")
    terminal = console()
    model = finished_model(folder, config, terminal)
    written = export_model(model, form, out, Choices(packed, int4), force=force)
    for note in written.notes:
        terminal.note(note)
    beside = model.record["size_bytes"]
    terminal.out.print(f"{out}: {written.size_bytes:,} bytes (packed file {beside:,})", markup=False)


def targets(name: Annotated[str | None, typer.Argument(help="A target's name or file.")] = None) -> None:
    """Lists the runtimes that --target takes; with a name, what it asks for and why."""
    from hwmodel.target import list_targets, load_target
    from mpsearch.show.targets import target_lines, targets_rows

    terminal = console()
    if name is None:
        terminal.out.print(targets_rows([load_target(known) for known in list_targets()]))
        return
    for line in target_lines(load_target(name)):
        terminal.out.print(line, markup=False)


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `mpsearch export`.")],
    run: Annotated[Path, typer.Option(metavar="RUN", help="The run folder that it was exported from.")],
    seconds: Annotated[float, typer.Option(min=0.0, help="How long to time it, with one thread and with all.")] = 3.0,
    as_json: Json = False,
) -> None:
    """Checks an exported file in its runtime: accuracy, KL to float, integer kernels, speed beside float, size."""
    from mpsearch.deploy.check import check as checked
    from mpsearch.deploy.open import open_exported
    from mpsearch.show.checked import checked_lines

    terminal = console()
    found = checked(file, run, open_exported(file), terminal, seconds)
    if as_json:
        emit_json(found.to_json())
        return
    for line in checked_lines(found.to_json()):
        terminal.out.print(line, markup=False)
