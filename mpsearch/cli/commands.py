"""The commands that make something: a whole run, its steps one by one, and a model at given bits."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from mpsearch.cli.arguments import Folder, Json, Out, Wait, takes
from mpsearch.cli.common import console, emit_json, hold, run_folder
from mpsearch.request.budgets import COSTS, NEED_DEVICE
from mpsearch.request.compute import ComputeOptions, SpreadOptions
from mpsearch.request.options import FinishOptions, RunOptions, edge_precision


@takes(RunOptions, SpreadOptions)
def run(options: RunOptions, where: SpreadOptions, out: Out = None, wait: Wait = False, as_json: Json = False) -> None:
    """The main job: sensitivity, search, and the finished model at the budget. Any number of budgets may be given."""
    from mpsearch.optimization.baselines import answers
    from mpsearch.run.expected import Stage
    from mpsearch.run.finalize import finalize_step
    from mpsearch.run.page import explored, write_page
    from mpsearch.run.picture import draw
    from mpsearch.run.steps import Run
    from mpsearch.run.tight import tight_step
    from mpsearch.show import tables
    from mpsearch.show.columns import as_text
    from mpsearch.show.summary import summary_rows, tight_rows

    job = Run(options, hold(run_folder(out, options.model), wait), console(), ahead=(Stage.FINALIZE,), where=where)
    table = job.layers_step()
    sensitivity = job.sensitivity_step()
    problem = job.problem(sensitivity)
    front = job.search_step(problem)
    best = front.best()
    chosen = finalize_step(job.loaded, front.config(best), "budget")
    beside = answers(problem, problem.genomes(front.choices[best : best + 1])[0])
    tight = tight_step(job.loaded, front, beside)
    summary = job.summary_step(chosen)
    comparison = tables.answer_rows(beside, options.budgets)
    job.folder.write(
        "report.txt",
        as_text(
            f"mpsearch {version('mpsearch')}: {job.loaded.model.reference}",
            summary_rows(summary),
            *tight_rows(tight),
            comparison,
            tables.bit_rows(table, [("bits", front.config(best))]),
        ),
    )
    draw(job.folder, front, table, beside)
    device = None if job.device is None else job.device.name
    name = job.folder.path.resolve().name
    shown = explored(job.folder, name, table, front, job.costs, sensitivity.intra, device, beside)
    write_page([shown], job.folder.file("front.html"))
    if as_json:
        emit_json(summary)
        return
    for part in (comparison, summary_rows(summary), *tight_rows(tight)):
        job.console.out.print(part)
    if tight:
        tightest = tight["rows"][tight["at"]]["point"]
        job.console.note(f"to finish that end of the front: mpsearch finalize {job.folder.path} --pick {tightest}")
    job.console.note(f"everything is in {job.folder.path}; open front.html, or run: mpsearch front {job.folder.path}")


@takes(FinishOptions)
def reconstruct(
    options: FinishOptions,
    bits: Annotated[
        str,
        typer.Option(
            help="W4 or W4A8 for all layers, or a JSON file of bits by layer: ours, HAWQ's, MCT's, AIMET's, NNCF's."
        ),
    ],
    out: Out = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Finishes a model at the bits that you give, without a search: a low-bit model with measured accuracy."""
    from hwmodel import FLOAT_BITS
    from hwmodel.target import load_target
    from mpsearch.request.assignment import parse_precision, read_assignment, uniform
    from mpsearch.request.edges import edge_layers
    from mpsearch.run.artifacts import FORMAT, GIVEN_BITS, require_same_model
    from mpsearch.run.finalize import finalize_step
    from mpsearch.run.loaded import Loaded
    from mpsearch.tasks.figure import finished_text

    path = Path(bits)
    precision = None if path.suffix in (".json", ".encodings") else parse_precision(bits)
    loaded = Loaded(options, hold(run_folder(out, options.model), wait), console())
    table = loaded.network.table
    if precision is None:
        given = read_assignment(path, table.names)
        name, config = path.stem, given.config
        if given.note:
            loaded.console.note(given.note)
    else:
        edges = () if options.edges == "free" else edge_layers(table)
        edge = edge_precision(precision.a != FLOAT_BITS, bool(precision.rate))
        name, config = str(precision), uniform(table.names, precision, edges, edge)
    if options.target is not None:
        load_target(options.target).require(sorted(set(config.precisions)))
    folder = loaded.folder
    require_same_model(folder, loaded.model)
    about = {"format": FORMAT, "fingerprint": loaded.model.fingerprint, "table": table.to_json()}
    folder.write_json("layers.json", about)
    folder.write(GIVEN_BITS, options.to_toml(folder.path))
    done = finalize_step(loaded, config, name)
    if as_json:
        emit_json(done)
        return
    loaded.console.out.print(f"{name}: {COSTS['size_bytes'].text(done['size_bytes'])}, {finished_text(done)}")
    loaded.console.note(f"the model is {folder.file(f'model-{name}.safetensors')}")


@takes(RunOptions, SpreadOptions)
def sensitivity(options: RunOptions, where: SpreadOptions, out: Out = None, wait: Wait = False) -> None:
    """Measures the sensitivity cache of a run folder, which `search` and `finalize` go on from."""
    from mpsearch.run.steps import Run

    job = Run(options, hold(run_folder(out, options.model), wait), console(), where=where)
    job.layers_step()
    job.sensitivity_step()
    job.console.note(f"the cache is in {job.folder.path}; go on with: mpsearch search {job.folder.path}")


@takes(ComputeOptions)
def search(options: ComputeOptions, folder: Folder, wait: Wait = False) -> None:
    """Searches the Pareto front of a run folder."""
    from mpsearch.files.folder import RunFolder
    from mpsearch.optimization.baselines import answers
    from mpsearch.run.steps import resume
    from mpsearch.show import tables

    asked = RunOptions.from_toml(folder / "config.toml", options)
    job = resume(asked, hold(RunFolder(folder), wait), console())
    problem = job.problem(job.sensitivity_step())
    front = job.search_step(problem)
    found = problem.genomes(front.choices[front.best() : front.best() + 1])[0]
    job.console.out.print(tables.answer_rows(answers(problem, found), job.options.budgets))


@takes(SpreadOptions)
def finalize(
    options: SpreadOptions,
    folder: Folder,
    pick: Annotated[
        str, typer.Option(help="Which points: budget, knee, a point's number, or all:N for N of them.")
    ] = "budget",
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Finishes points of a run folder's front: low-bit models with measured accuracy."""
    from mpsearch.files.folder import RunFolder
    from mpsearch.optimization.picks import picked, require_pick
    from mpsearch.run.spread import finalize_points
    from mpsearch.run.steps import Run
    from mpsearch.tasks.figure import finished_text

    require_pick(pick)
    asked = RunOptions.from_toml(folder / "config.toml", options)
    job = Run(asked, hold(RunFolder(folder), wait), console(), where=options)
    job.layers_step()
    front = job.search_step(job.problem(job.sensitivity_step()))
    configs = {name: front.config(index) for name, index in picked(front, pick)}
    everything = {}
    for name, done in finalize_points(job.loaded, configs, options):
        everything[name] = done
        if as_json:
            continue
        costs = job.costs_of(configs[name])
        spent = [COSTS[cost].text(costs[cost]) for cost in ("size_bytes", *NEED_DEVICE) if cost in costs]
        job.console.out.print(f"{name}: {', '.join(spent)}, {finished_text(done)}")
    if as_json:
        emit_json({name: everything[name] for name in configs})
