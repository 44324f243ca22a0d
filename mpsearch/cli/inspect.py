"""The commands that look at what is there: fronts, comparisons, explanations, bit assignments, the embedded data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hwmodel import InputError
from hwmodel.files import write_whole
from mpsearch.cli.arguments import Folder, Json
from mpsearch.cli.common import console, emit, emit_json
from mpsearch.cli.deploy import MODEL_FORMATS, export_finished
from mpsearch.files.lock import sweep


def front(
    folder: Folder,
    points: Annotated[int, typer.Option(min=4, help="Points shown.")] = 12,
    plot: Annotated[bool, typer.Option("--plot", help="Draw front.png again.")] = False,
    as_json: Json = False,
) -> None:
    """Shows a run's front beside plain answers: as a table, as a picture, and who got which bits."""
    from mpsearch.files.folder import RunFolder
    from mpsearch.optimization.baselines import answers
    from mpsearch.run.artifacts import finished_configs, read_front, read_layers, read_problem
    from mpsearch.run.picture import draw
    from mpsearch.show import tables
    from mpsearch.show.compare import measured_points

    place = RunFolder(folder)
    found, table = read_front(place), read_layers(place)
    if as_json:
        emit(found.to_json())
        return
    finished = finished_configs(place)
    beside = answers(read_problem(place))
    done = {point.index for point in measured_points(found, finished)}
    shown = sorted({*found.thin(points), *done})
    terminal = console()
    terminal.out.print(tables.front_rows(found, shown, [entry for _, entry in finished], beside))
    terminal.out.print(tables.bit_rows(table, [(str(index), found.config(index)) for index in shown]))
    if plot:
        draw(place, found, table, beside)
        terminal.note(f"the picture is {folder / 'front.png'}")


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Two or more run folders.")],
    plot: Annotated[Path | None, typer.Option(help="Draw them over each other into this .png.")] = None,
    as_json: Json = False,
) -> None:
    """Lays the fronts of several runs over each other: losses within the same costs, and what was measured."""
    from mpsearch.files.folder import RunFolder
    from mpsearch.run.artifacts import finished_configs, read_front, read_layers
    from mpsearch.show import tables
    from mpsearch.show.compare import compare as compared
    from mpsearch.show.plots import draw_comparison

    if len(folders) < 2:
        raise InputError("compare takes two or more run folders")
    if plot is not None and plot.suffix != ".png":
        raise InputError(f"--plot must name a .png file, got {plot}")
    runs = []
    for folder, name in zip(folders, _short_names(folders), strict=True):
        place = RunFolder(folder)
        found = read_front(place)
        runs.append((name, read_layers(place).model, found, finished_configs(place)))
    comparison = compared(runs)
    if plot is not None:
        sweep(plot.parent)
        draw_comparison(comparison, plot)
    if as_json:
        emit_json(comparison.to_json())
        return
    terminal = console()
    for part in tables.comparison_rows(comparison):
        terminal.out.print(part, markup=False)
    if plot is not None:
        terminal.note(f"the picture is {plot}")


def explore(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN [RUN…]", help="One or more run folders.")],
    out: Annotated[Path | None, typer.Option(help="The page to write (default: RUN/front.html).")] = None,
) -> None:
    """Writes a page to look through fronts with: every configuration, its bits by layer, its costs; one HTML file."""
    from mpsearch.files.folder import RunFolder
    from mpsearch.run.page import read_explored, write_page

    if out is None and len(folders) > 1:
        raise InputError("a page of several runs belongs to none of them: name it with --out front.html")
    path = folders[0] / "front.html" if out is None else out
    if path.suffix not in (".html", ".htm"):
        raise InputError(f"--out must name an .html file, got {path}")
    runs = [read_explored(RunFolder(folder), name) for folder, name in zip(folders, _short_names(folders), strict=True)]
    write_page(runs, path)
    emit(f"{path}\n")


def why(
    folder: Folder,
    config: Annotated[str, typer.Argument(help="A finished name, budget, knee, a point's number, or a JSON of bits.")],
    strongest: Annotated[int, typer.Option(min=0, help="Interactions listed.")] = 10,
    as_json: Json = False,
) -> None:
    """Explains a configuration: bits, bytes and predicted loss by layer, interactions, and what the next bit brings."""
    from mpsearch.files.folder import RunFolder
    from mpsearch.run.artifacts import read_config, read_costs, read_layers, read_sensitivity
    from mpsearch.show import tables
    from mpsearch.show.why import explain

    place = RunFolder(folder)
    name, bits = read_config(place, config)
    costs, allowed = read_costs(place)
    table = read_sensitivity(place)
    found = explain(name, bits, read_layers(place), costs, table, allowed, strongest)
    if as_json:
        emit_json(found.to_json())
        return
    for part in tables.why_rows(found):
        console().out.print(part, markup=False)


def export(
    folder: Folder,
    form: Annotated[
        str, typer.Option("--format", help="json or csv: the bits; onnx, tflite, c, pt2e, aimet: the model.")
    ] = "json",
    out: Annotated[Path | None, typer.Option(help="A file (default, for the bits: stdout).")] = None,
    config: Annotated[str | None, typer.Option(help="Which finished model (default: budget, or the only one).")] = None,
    packed: Annotated[bool, typer.Option("--packed", help="ONNX: codes without gaps, the smallest file.")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="TFLite: weights of up to 4 bits as int4.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Writes the bit assignments of a run's finished configurations, or a finished model for another runtime."""
    from mpsearch.export.bits import export as exported
    from mpsearch.files.folder import RunFolder
    from mpsearch.run.artifacts import finished_configs, read_configs, read_layers
    from mpsearch.tasks.figure import finished_text

    if form in MODEL_FORMATS:
        export_finished(folder, form, out, config, packed, int4, force)
        return
    if form not in ("json", "csv"):
        raise InputError(f"--format must be json, csv or {', '.join(MODEL_FORMATS)}, got {form!r}")
    place = RunFolder(folder)
    finished = finished_configs(place)
    configs = read_configs(finished)
    for name, record in finished:
        console().note(f"{name}: {record['size_bytes']:,} bytes, {finished_text(record)}")
    text = exported(read_layers(place), configs, "csv" if form == "csv" else "json")
    if out is None:
        emit(text)
    else:
        sweep(out.parent)
        write_whole(out, text.encode())


def demo_data(out: Annotated[Path, typer.Option(help="A folder for the contact sheet.")]) -> None:
    """Writes a contact sheet of the embedded data set, to look at."""
    from mpsearch.files.folder import RunFolder
    from mpsearch.sources.demo import contact_sheet

    with RunFolder(out).held(note=console().note, subfolders=()):
        contact_sheet(out / "contact_sheet.png")
    emit(f"{out / 'contact_sheet.png'}\n")


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where names repeat."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
