"""The command line. Results go to stdout, all else to stderr; exit codes: 0 done, 1 internal fault, 2 bad input."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwmodel import InputError
from mpsearch.request.budgets import COSTS, NEED_DEVICE
from mpsearch.request.options import RunOptions, device_abits, edge_policy, parse_abits, parse_bits, parse_objectives
from mpsearch.request.units import parse_size

DEFAULTS = RunOptions(model="", size_budget_bytes=1)
INTERRUPTED = 130
CACHE_MEMORY = f"{DEFAULTS.cache_memory_bytes // 2**30}GiB"
WBITS = ",".join(map(str, DEFAULTS.wbits))
ANY_SIZE = {"size_budget_bytes": 10**9}  # for commands that search nothing

if TYPE_CHECKING:
    from hwmodel import LayerTable
    from mpsearch.files.folder import RunFolder
    from mpsearch.run.steps import Run
    from mpsearch.search.baselines import Answer
    from mpsearch.search.front import ParetoFront
    from mpsearch.show.console import Console

app = typer.Typer(
    name="mpsearch",
    help="Finds the bit-width of every layer of a trained network and finishes it by block reconstruction.",
    pretty_exceptions_enable=False,
    add_completion=False,
)

Model = Annotated[str, typer.Option(help="A torchvision classifier, file.py:factory or package.module:factory.")]
Weights = Annotated[Path | None, typer.Option(help="safetensors or a torch checkpoint; a JSON may stand beside it.")]
Data = Annotated[
    str | None, typer.Option(help="A folder with calib/ and val/, a .npz, file.py:factory, or distilled: none.")
]
SizeBudget = Annotated[str | None, typer.Option(help="What the packed file may take: 1.5MB, 900kB, 2MiB.")]
LatencyBudget = Annotated[str | None, typer.Option(help="Seconds an image on the device: 3ms, 250us.")]
EnergyBudget = Annotated[str | None, typer.Option(help="Joules an image on the device: 1mJ, 800uJ.")]
BopsBudget = Annotated[str | None, typer.Option(help="Bit operations an image: 34G.")]
MeanBits = Annotated[str | None, typer.Option(help="Mean bits of a weight: 3.5.")]
Device = Annotated[str | None, typer.Option(help="A device's name, its TOML, or a lookup table (.csv, .json).")]
Objectives = Annotated[
    str | None,
    typer.Option(
        help="What the front spans beside the loss, one or two of size, latency, energy (default: what is budgeted)."
    ),
]
Bits = Annotated[str, typer.Option(help="Candidate weight bits.")]
ABits = Annotated[
    str | None,
    typer.Option(
        help="Candidate activation bits: 8, 4,8 or 8,32 (32: float) (default: float; on a device, its widest)."
    ),
]
Symmetric = Annotated[bool, typer.Option("--symmetric", help="Weights on grids with the zero-point in the middle.")]
Edges = Annotated[str, typer.Option(help="First and last layer: 8, free, or auto (8 where the budget has room).")]
Fix = Annotated[list[str] | None, typer.Option(help="LAYER=8, LAYER=4,8 or LAYER!=2; may be repeated.")]
Tie = Annotated[list[str] | None, typer.Option(help="LAYER,LAYER,… that get the same bits; may be repeated.")]
Samples = Annotated[int, typer.Option(help="Calibration images.")]
ValSamples = Annotated[int, typer.Option(help="Validation images; 0 for all.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Population = Annotated[int, typer.Option(help="Configurations a generation.")]
Generations = Annotated[int, typer.Option(help="Generations at most.")]
Steps = Annotated[
    int, typer.Option(help="Most reconstruction steps a block; up to four times as many where much is to be done.")
]
CacheMemory = Annotated[
    str, typer.Option(help="Memory for the inputs and outputs of blocks; what is beyond it is kept in files.")
]
Out = Annotated[Path | None, typer.Option(help="The run folder (default: runs/MODEL).")]
Json = Annotated[bool, typer.Option("--json", help="Only JSON to stdout.")]
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Options of every command."""
    if show_version:
        typer.echo(f"mpsearch {version('mpsearch')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def run(
    size_budget: SizeBudget = None,
    latency_budget: LatencyBudget = None,
    energy_budget: EnergyBudget = None,
    bops_budget: BopsBudget = None,
    mean_bits: MeanBits = None,
    device: Device = None,
    objectives: Objectives = None,
    model: Model = "mobilenetv2",
    weights: Weights = None,
    data: Data = None,
    wbits: Bits = WBITS,
    abits: ABits = None,
    symmetric: Symmetric = False,
    edges: Edges = DEFAULTS.edges,
    fix: Fix = None,
    tie: Tie = None,
    samples: Samples = DEFAULTS.samples,
    val_samples: ValSamples = DEFAULTS.val_samples,
    seed: Seed = DEFAULTS.seed,
    population: Population = DEFAULTS.population,
    generations: Generations = DEFAULTS.generations,
    steps: Steps = DEFAULTS.steps,
    cache_memory: CacheMemory = CACHE_MEMORY,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The main job: sensitivity, search, and the finished model at the budget. Any number of budgets may be given."""
    from mpsearch.search.baselines import answers
    from mpsearch.show import tables

    options = _options(
        _bounds(size_budget, latency_budget, energy_budget, bops_budget, mean_bits, device, objectives),
        model,
        weights,
        data,
        wbits,
        abits,
        edges,
        fix,
        tie,
        symmetric=symmetric,
        samples=samples,
        val_samples=val_samples,
        seed=seed,
        population=population,
        generations=generations,
        steps=steps,
        cache_memory_bytes=parse_size(cache_memory),
    )
    job = _start(options, out)
    table = job.layers_step()
    sensitivity = job.sensitivity_step()
    front = job.search_step(sensitivity)
    best = front.best()
    chosen = job.finalize_step(front.config(best), "budget")
    summary = job.summary_step(chosen)
    problem = job.problem(sensitivity)
    beside = answers(problem, problem.genomes(front.choices[best : best + 1])[0])
    comparison = tables.answer_rows(beside, options.budgets)
    job.folder.write(
        "report.txt",
        tables.as_text(
            f"mpsearch {version('mpsearch')}: {job.model.reference}",
            tables.summary_rows(summary),
            comparison,
            tables.bit_rows(table, [("bits", front.config(best))]),
        ),
    )
    _draw(job.folder, front, table, beside)
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    job.console.out.print(comparison)
    job.console.out.print(tables.summary_rows(summary))
    job.console.note(f"everything is in {job.folder.path}; look at front.png, or run: mpsearch front {job.folder.path}")


@app.command()
def layers(
    model: Model = "mobilenetv2",
    weights: Weights = None,
    data: Data = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """The layer table: shapes, MACs, weights, blocks, and what is not quantized; with a device, what layers cost."""
    from hwmodel.device import load_device
    from hwmodel.latency import device_costs
    from mpsearch.show import tables

    spec = None if device is None else load_device(device)
    table = _start(_options(ANY_SIZE, model, weights, data), None).table
    if as_json:
        print(json.dumps(table.to_json(), indent=1))
        return
    console = _console()
    if spec is not None:
        for part in tables.cost_rows(device_costs(table, spec.precisions, spec)):
            console.out.print(part)
        if spec.table is not None and (missing := spec.table.missing(table, spec.precisions)):
            console.out.print(tables.missing_rows(missing))
        return
    for view in tables.layer_rows(table):
        console.out.print(view)


@app.command()
def devices(name: Annotated[str | None, typer.Argument(help="A device's name or file.")] = None) -> None:
    """Lists the device models that come along; with a name, every number with its unit and source."""
    from hwmodel.device import list_devices, load_device
    from mpsearch.show import tables

    if name is None:
        _console().out.print(tables.devices_rows([load_device(known) for known in list_devices()]))
        return
    for part in tables.device_rows(load_device(name)):
        _console().out.print(part, markup=False)


@app.command()
def profile(
    out: Annotated[Path, typer.Option(help="The lookup table to write: .csv or .json.")],
    model: Model = "mobilenetv2",
    weights: Weights = None,
    data: Data = None,
    runtime: Annotated[str, typer.Option(help="What runs the layers: onnxruntime.")] = "onnxruntime",
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    rounds: Annotated[int, typer.Option(help="Runs that are counted.")] = 30,
) -> None:
    """Measures every distinct layer shape in a runtime on this machine: a lookup table for --device."""
    from hwmodel.lookup import write_lookup
    from mpsearch.hardware.profile import profile_layers

    if runtime != "onnxruntime":
        raise InputError(f"--runtime must be onnxruntime, got {runtime!r}")
    _check_table_path(out)
    job = _start(_options(ANY_SIZE, model, weights, data), None)
    partial = out.with_suffix(".partial.json")
    try:
        found = profile_layers(job.table, threads=threads, rounds=rounds, report=job.console.note, partial=partial)
        write_lookup(found, out)
    except OSError as error:
        raise InputError(f"cannot write {out} ({error.strerror}); name another file with --out") from None
    job.console.note(f"the table is in {out}; see it with: mpsearch layers --device {out}")


@app.command("import-haq")
def import_haq(
    table: Annotated[Path, typer.Argument(help="A lookup table in HAQ's layout, .npy, (layers, 8, 8).")],
    unit: Annotated[str, typer.Option(help="What one unit of its numbers is, the file does not say: 1ms.")],
    out: Annotated[Path, typer.Option(help="The lookup table to write: .csv or .json.")],
    batch: Annotated[int, typer.Option(help="Images that its costs are for.")] = 16,
    model: Model = "mobilenetv2",
    weights: Weights = None,
    data: Data = None,
) -> None:
    """Turns a latency table of HAQ (github.com/mit-han-lab/haq) into a lookup table for --device."""
    from hwmodel.lookup import import_haq as imported
    from hwmodel.lookup import read_haq, write_lookup
    from mpsearch.request.units import parse_duration

    _check_table_path(out)
    seconds, costs = parse_duration(unit), read_haq(table)
    job = _start(_options(ANY_SIZE, model, weights, data), None)
    order = {name: index for index, (name, _) in enumerate(job.model.model.named_modules())}
    layers = replace(job.table, layers=tuple(sorted(job.table, key=lambda layer: order[layer.name])))
    found = imported(costs, layers, seconds, batch, f"HAQ table {table.name}, a batch of {batch}, unit {unit}")
    try:
        write_lookup(found, out)
    except OSError as error:
        raise InputError(f"cannot write {out} ({error.strerror}); name another file with --out") from None
    job.console.note(f"the table is in {out}; see it with: mpsearch layers --device {out}")


def _check_table_path(out: Path) -> None:
    if out.suffix not in (".csv", ".json"):
        raise InputError(f"--out must be a .csv or .json file, got {out}")


@app.command()
def sensitivity(
    size_budget: SizeBudget = None,
    latency_budget: LatencyBudget = None,
    energy_budget: EnergyBudget = None,
    bops_budget: BopsBudget = None,
    mean_bits: MeanBits = None,
    device: Device = None,
    objectives: Objectives = None,
    model: Model = "mobilenetv2",
    weights: Weights = None,
    data: Data = None,
    wbits: Bits = WBITS,
    abits: ABits = None,
    symmetric: Symmetric = False,
    edges: Edges = DEFAULTS.edges,
    fix: Fix = None,
    tie: Tie = None,
    samples: Samples = DEFAULTS.samples,
    seed: Seed = DEFAULTS.seed,
    out: Out = None,
) -> None:
    """Measures the sensitivity cache of a run folder, which `search` and `finalize` go on from."""
    bounds = _bounds(size_budget, latency_budget, energy_budget, bops_budget, mean_bits, device, objectives)
    options = _options(
        bounds, model, weights, data, wbits, abits, edges, fix, tie, symmetric=symmetric, samples=samples, seed=seed
    )
    job = _start(options, out)
    job.layers_step()
    job.sensitivity_step()
    job.console.note(f"the cache is in {job.folder.path}; go on with: mpsearch search {job.folder.path}")


@app.command()
def search(folder: Folder) -> None:
    """Searches the Pareto front of a run folder."""
    from mpsearch.search.baselines import answers
    from mpsearch.show import tables

    job = _resume(folder)
    table = job.sensitivity_step()
    front = job.search_step(table)
    problem = job.problem(table)
    found = problem.genomes(front.choices[front.best() : front.best() + 1])[0]
    job.console.out.print(tables.answer_rows(answers(problem, found), job.options.budgets))


@app.command()
def finalize(
    folder: Folder,
    pick: Annotated[
        str, typer.Option(help="Which points: budget, knee, a point's number, or all:N for N of them.")
    ] = "budget",
    as_json: Json = False,
) -> None:
    """Finishes points of a run folder's front: low-bit models with measured accuracy."""
    from mpsearch.search.picks import picked

    job = _resume(folder)
    front = job.search_step(job.sensitivity_step())
    everything = {}
    for name, index in picked(front, pick):
        done = everything[name] = job.finalize_step(front.config(index), name)
        if as_json:
            continue
        costs = job.costs_of(front.config(index))
        spent = [COSTS[cost].text(costs[cost]) for cost in ("size_bytes", *NEED_DEVICE) if cost in costs]
        job.console.out.print(_finished_line(name, spent, done))
    if as_json:
        print(json.dumps(everything, indent=1))


@app.command()
def reconstruct(
    bits: Annotated[str, typer.Option(help="W4 or W4A8 for all layers, or a JSON file of bits by layer.")],
    model: Model = "mobilenetv2",
    weights: Weights = None,
    data: Data = None,
    symmetric: Symmetric = False,
    edges: Annotated[str, typer.Option(help="First and last layer where all get the same bits: 8 or free.")] = "8",
    samples: Samples = DEFAULTS.samples,
    val_samples: ValSamples = DEFAULTS.val_samples,
    seed: Seed = DEFAULTS.seed,
    steps: Steps = DEFAULTS.steps,
    granularity: Annotated[str, typer.Option(help="What is fitted at once: layer, block, stage or network.")] = "block",
    cache_memory: CacheMemory = CACHE_MEMORY,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Finishes a model at the bits that you give, without a search: a low-bit model with measured accuracy."""
    from mpsearch.request.assignment import parse_precision, read_assignment, uniform

    path = Path(bits)
    precision = None if path.suffix == ".json" else parse_precision(bits)
    options = _options(
        ANY_SIZE,
        model,
        weights,
        data,
        abits=None if precision is None else str(precision.a),
        edges=edges,
        symmetric=symmetric,
        samples=samples,
        val_samples=val_samples,
        seed=seed,
        steps=steps,
        granularity=granularity,
        cache_memory_bytes=parse_size(cache_memory),
    )
    job = _start(options, out)
    names = job.table.names
    config = read_assignment(path, names) if precision is None else uniform(names, precision, job.pinned, options.edge)
    job.check_folder()
    job.write_layers()
    name = path.stem if precision is None else str(precision)
    done = job.finalize_step(config, name)
    if as_json:
        print(json.dumps(done, indent=1))
        return
    job.console.out.print(_finished_line(name, [COSTS["size_bytes"].text(done["size_bytes"])], done))
    job.console.note(f"the model is {job.folder.file(f'model-{name}.safetensors')}")


@app.command()
def front(
    folder: Folder,
    points: Annotated[int, typer.Option(min=4, help="Points shown.")] = 12,
    plot: Annotated[bool, typer.Option("--plot", help="Draw front.png again.")] = False,
    as_json: Json = False,
) -> None:
    """Shows a run's front beside plain answers: as a table, as a picture, and who got which bits."""
    from mpsearch.files.folder import RunFolder
    from mpsearch.run.artifacts import finished_configs, read_front, read_layers, read_problem
    from mpsearch.search.baselines import answers
    from mpsearch.show import tables
    from mpsearch.show.compare import measured_points

    place = RunFolder(folder)
    found, table = read_front(place), read_layers(place)
    if as_json:
        print(found.to_json(), end="")
        return
    finished = finished_configs(place)
    beside = answers(read_problem(place))
    done = {point.index for point in measured_points(found, finished)}
    shown = sorted({*found.thin(points), *done})
    console = _console()
    console.out.print(tables.front_rows(found, shown, [entry for _, entry in finished], beside))
    console.out.print(tables.bit_rows(table, [(str(index), found.config(index)) for index in shown]))
    if plot:
        _draw(place, found, table, beside)
        console.note(f"the picture is {folder / 'front.png'}")


@app.command()
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
        with _writing(plot, "--plot"):
            draw_comparison(comparison, plot)
    if as_json:
        print(json.dumps(comparison.to_json(), indent=1))
        return
    console = _console()
    for part in tables.comparison_rows(comparison):
        console.out.print(part, markup=False)
    if plot is not None:
        console.note(f"the picture is {plot}")


@app.command()
def why(
    folder: Folder,
    config: Annotated[str, typer.Argument(help="A finished name, budget, knee, a point's number, or a JSON of bits.")],
    strongest: Annotated[int, typer.Option(min=0, help="Interactions listed.")] = 10,
    as_json: Json = False,
) -> None:
    """Explains a configuration: bits, bytes and predicted loss by layer, interactions, and what the next bit brings."""
    from mpsearch.files.folder import RunFolder
    from mpsearch.run.artifacts import read_config, read_costs, read_layers
    from mpsearch.sensitivity.cache import load_table
    from mpsearch.show import tables
    from mpsearch.show.why import explain

    place = RunFolder(folder)
    name, bits = read_config(place, config)
    costs, allowed = read_costs(place)
    table = load_table(place.file("sensitivity.safetensors"))
    found = explain(name, bits, read_layers(place), costs, table, allowed, strongest)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
        return
    for part in tables.why_rows(found):
        _console().out.print(part, markup=False)


@app.command()
def export(
    folder: Folder,
    form: Annotated[str, typer.Option("--format", help="json or csv.")] = "json",
    out: Annotated[Path | None, typer.Option(help="A file (default: stdout).")] = None,
) -> None:
    """Writes the bit assignments of a run's finished configurations."""
    from mpsearch.export.bits import export as exported
    from mpsearch.files.folder import RunFolder
    from mpsearch.run.artifacts import finished_configs, read_configs, read_layers

    if form not in ("json", "csv"):
        raise InputError(f"--format must be json or csv, got {form!r}")
    place = RunFolder(folder)
    configs = read_configs(finished_configs(place))
    text = exported(read_layers(place), configs, "csv" if form == "csv" else "json")
    if out is None:
        print(text, end="")
    else:
        with _writing(out, "--out"):
            out.write_text(text, encoding="utf-8")


@app.command("demo-data")
def demo_data(out: Annotated[Path, typer.Option(help="A folder for the contact sheet.")]) -> None:
    """Writes a contact sheet of the embedded data set, to look at."""
    from mpsearch.files.folder import RunFolder
    from mpsearch.sources.demo import contact_sheet

    RunFolder(out).prepare(())
    contact_sheet(out / "contact_sheet.png")
    typer.echo(out / "contact_sheet.png")


def main() -> None:
    """The entry point: turns errors into one line and an exit code."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    with _errors(debug):
        code = app(arguments, standalone_mode=False)
        if code == INTERRUPTED:  # typer makes this of a KeyboardInterrupt
            raise KeyboardInterrupt
        sys.exit(code)


@contextlib.contextmanager
def _errors(debug: bool) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        if debug:
            raise
        print(f"mpsearch: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("mpsearch: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "format_message"):  # a wrong command line; where typer keeps the class depends on its version
            print(f"mpsearch: {error.format_message()} (mpsearch --help lists what there is)", file=sys.stderr)
            sys.exit(2)
        print(f"mpsearch: internal fault: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        sys.exit(1)


def _bounds(
    size: str | None,
    latency: str | None,
    energy: str | None,
    bops: str | None,
    mean_bits: str | None,
    device: str | None,
    objectives: str | None,
) -> dict[str, Any]:
    """The run options that the budgets on the command line mean."""
    texts = {"size_bytes": size, "latency_s": latency, "energy_j": energy, "bops": bops, "mean_bits": mean_bits}
    bounds = {COSTS[name].field: COSTS[name].parse(text) for name, text in texts.items() if text is not None}
    return {**bounds, "device": device, "objectives": () if objectives is None else parse_objectives(objectives)}


def _options(
    bounds: dict[str, Any],
    model: str,
    weights: Path | None,
    data: str | None,
    wbits: str = WBITS,
    abits: str | None = None,
    edges: str = DEFAULTS.edges,
    fix: Sequence[str] | None = None,
    tie: Sequence[str] | None = None,
    **counts: Any,
) -> RunOptions:
    candidates = parse_bits(wbits)
    if abits is not None:
        activations = parse_abits(abits)
    else:
        activations = device_abits(bounds["device"], candidates) if bounds.get("device") else ()
    return RunOptions(
        model=model,
        **bounds,
        weights=None if weights is None else str(weights),
        data=data,
        wbits=candidates,
        abits=activations,
        edges=edge_policy(edges),
        fix=tuple(fix or ()),
        tie=tuple(tie or ()),
        **counts,
    )


def _finished_line(name: str, spent: Sequence[str], done: Mapping[str, Any]) -> str:
    """What a finished configuration costs and what is left of its accuracy."""
    top1 = "" if done["top1_reconstructed"] is None else f", top-1 {done['top1_reconstructed']:.2f} %"
    return f"{name}: {', '.join(spent)}, KL {done['kl_reconstructed']:.4f} nats{top1}"


def _start(options: RunOptions, out: Path | None) -> Run:
    from mpsearch.files.folder import RunFolder
    from mpsearch.run.steps import Run

    console = _console()
    if options.demo:
        console.note("embedded default: our own MobileNetV2 and rendered images; --weights and --data take yours")
    name = options.model.rsplit(":", 1)[-1]
    return Run(options, RunFolder(out or Path("runs") / name), console)


def _resume(folder: Path) -> Run:
    return _start(RunOptions.from_toml(folder / "config.toml"), folder)


def _console() -> Console:
    from mpsearch.show.console import Console

    return Console()


def _draw(folder: RunFolder, found: ParetoFront, table: LayerTable, beside: Sequence[Answer]) -> None:
    from mpsearch.run.artifacts import finished_configs
    from mpsearch.show.plots import draw_front, front_info

    info = front_info(found, found.best(), dict(found.budgets), table, beside, finished_configs(folder))
    draw_front(info, folder.file("front.png"))


@contextlib.contextmanager
def _writing(path: Path, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); name another file with {option}") from None


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where names repeat."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
