"""The steps of a run up to its front: each writes one file into the run folder and is skipped when that is current."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from hwmodel import FLOAT_BITS, BitConfig, BudgetError, CostTable, LayerTable, Precision
from hwmodel.cost import total_costs
from hwmodel.device import DeviceSpec, load_device
from hwmodel.filesize import FORMS, PACKED
from hwmodel.size import PackedLayout
from mpsearch.export.filesize import fixed_bytes, longest
from mpsearch.export.packed import layout_of
from mpsearch.files.folder import Json, RunFolder
from mpsearch.optimization.build import build_problem, with_budgets, with_sensitivity
from mpsearch.optimization.front import LOSS, ParetoFront
from mpsearch.optimization.nsga2 import course, search
from mpsearch.optimization.problem import BitProblem, cheapest
from mpsearch.optimization.settings import SearchSettings
from mpsearch.request.budgets import COSTS, NEED_DEVICE, default_objectives, describe
from mpsearch.request.candidates import Candidates, as_coded, candidates, priced
from mpsearch.request.compute import ALONE, SpreadOptions
from mpsearch.request.options import RunOptions
from mpsearch.request.rules import parse_tie, tied
from mpsearch.run.artifacts import CACHE, Origin, costs_json, heads_json, read_front, read_origin, require_same_model
from mpsearch.run.clock import Clock
from mpsearch.run.expected import Stage
from mpsearch.run.keys import front_key, graph_digest, origin_key, scores_key, sensitivity_key
from mpsearch.run.loaded import Given, Loaded
from mpsearch.run.memory import peak_rss_bytes
from mpsearch.run.scoring import spread_scores
from mpsearch.run.summary import summarize
from mpsearch.sensitivity.cache import load_scores, load_table, save_cache
from mpsearch.sensitivity.measure import measure, split
from mpsearch.sensitivity.scores import widths
from mpsearch.sensitivity.table import SensitivityTable
from mpsearch.show.console import Console
from mpsearch.show.tables import not_counted
from mpsearch.tasks.detection import NAME as DETECTION
from recon.graph.beside import operations_beside
from recon.graph.gradients import without_gradient

SHAPES = 2  # samples that the size of exported files is found with
ROUGHLY = 0.8  # of what entropy-coded layers are thought to take before they are coded, they may take as little
FLOAT_SHARE, MOST_NAMED = 0.1, 3  # of a file's fixed bytes, from which parts that stay float are named, and how many


def resume(options: RunOptions, folder: RunFolder, console: Console) -> Run:
    """The run of a folder by its options, for the steps behind sensitivity.

    Where layers and sensitivity cache are current by what the folder says, neither the model nor the images are loaded;
    else the layers step is made again.
    """
    origin = read_origin(folder)
    if origin is not None and origin.key == origin_key(options):
        job = Run(options, folder, console, origin)
        if job.stored_sensitivity() is not None:
            return job
    job = Run(options, folder, console)
    job.layers_step()
    return job


@dataclass
class Run:
    """One run: its options, its folder, and what its steps share.

    With `stored`, what the folder says of the network and the images is believed; without, they are loaded. `ahead` is
    what is to follow sensitivity, so that its need of memory is known before that; `where` says which processes measure
    sensitivity.
    """

    options: RunOptions
    folder: RunFolder
    console: Console
    stored: Origin | None = None
    clock: Clock = field(default_factory=Clock)
    given: Given | None = None
    ahead: tuple[Stage, ...] = ()
    where: SpreadOptions = ALONE
    loaded: Loaded = field(init=False)

    def __post_init__(self) -> None:
        self.loaded = Loaded(self.options, self.folder, self.console, self.clock, self.given)

    @cached_property
    def table(self) -> LayerTable:
        """The layer table, layers tied as asked for."""
        if self.stored is not None:
            return self.stored.table
        return tied(self.loaded.network.table, map(parse_tie, self.options.tie))

    @cached_property
    def fixed_bytes(self) -> int:
        """What the file whose size counts holds beside its layers."""
        if self.stored is not None:
            return self.stored.fixed_bytes
        if self.options.size_of == PACKED:
            return self._layout.fixed_bytes()
        loaded, abits = self.loaded, max(self.options.abits, default=FLOAT_BITS)
        network, model = loaded.network, loaded.model
        metadata = longest(model.reference, model.fingerprint, network.table.names, self.options.budgets)
        leaves = network.leaves(loaded.calibration[:SHAPES])
        return fixed_bytes(FORMS[self.options.size_of], network, metadata, leaves, abits)

    @cached_property
    def _layout(self) -> PackedLayout:
        coded = 0 if self.coded else None
        return layout_of(self.loaded.network, self.loaded.model.reference, bool(self.options.abits), coded)

    @property
    def coded(self) -> bool:
        """Codes of weights are entropy-coded."""
        return self.options.coding == "entropy"

    @cached_property
    def origin(self) -> Origin:
        """What the run is of: the network and the images."""
        if self.stored is not None:
            return self.stored
        model, images = self.loaded.model.fingerprint, self.loaded.data.calib.fingerprint
        heads = heads_json(self.loaded.likelihood)
        graph = graph_digest(self.loaded.network)
        return Origin(origin_key(self.options), model, graph, images, heads, self.fixed_bytes, self.table)

    @cached_property
    def device(self) -> DeviceSpec | None:
        """The device whose latency and energy count."""
        return None if self.options.device is None else load_device(self.options.device)

    @cached_property
    def candidates(self) -> Candidates:
        """What every layer may have."""
        return candidates(self.options, self.table, self.fixed_bytes, self.device)

    @cached_property
    def _priced(self) -> CostTable:
        return priced(self.options, self.table, self.fixed_bytes, self.device, self.candidates.precisions)

    @cached_property
    def costs(self) -> CostTable:
        """Sizes, bit operations and, where there is a device, latency and energy per layer and candidate; the sizes of
        entropy-coded layers as sensitivity has coded them."""
        sensitivity = self.stored_sensitivity() if self.coded else None
        return self._priced if sensitivity is None else as_coded(self._priced, self.table, sensitivity)

    def costs_of(self, config: BitConfig) -> dict[str, float]:
        """What a configuration costs, by the names that budgets have."""
        return total_costs(self.table, self.costs, config)

    @cached_property
    def _choices(self) -> BitProblem:
        """The search problem under the budgets, before any loss is known.

        Raises BudgetError where no configuration fits; it names the nearest.
        """
        precisions, budgets = self.candidates.precisions, self.options.budgets
        unmeasured = SensitivityTable.unmeasured(self.table.names, precisions)
        objectives = self.options.objectives or default_objectives(budgets, self.device is not None)
        free = build_problem(
            self.table, self._priced, unmeasured, self.candidates.allowed, objectives=(LOSS, *objectives)
        )
        for name, limit in budgets.items():
            self._require_reachable(free, name, limit)
        return free if self.coded else with_budgets(free, budgets)

    def _require_reachable(self, problem: BitProblem, name: str, limit: float) -> None:
        genome = cheapest(problem, name)
        least = float(problem.pick(problem.values(genome[None]), [name])[0, 0])
        if least * (ROUGHLY if self.coded else 1) <= limit * (1 + 1e-12):
            return
        cost = COSTS[name]
        pinned = self.candidates.pinned
        on = f" on {self.device.name}" if self.device is not None and name in NEED_DEVICE else ""
        what = "smallest file" if name == "size_bytes" else f"{cost.least} configuration"
        raise BudgetError(
            f"the {cost.title} budget is {cost.text(limit)}, but the {what} that candidate bits "
            f"{', '.join(map(str, self.candidates.offered))} can reach{on} has {cost.text(least)} "
            f"({describe(problem.config(genome))}){self._in_the_way(name)}; raise {cost.option} or allow fewer bits "
            f"with {'--rates' if self.coded else '--wbits'}"
            + (f", or for {' and '.join(pinned)} with --edges free" if pinned else "")
        )

    def _in_the_way(self, cost: str) -> str:
        """What no choice of bits makes smaller: the largest of the parts that stay float, where they take a share."""
        known = cost == "size_bytes" and self.stored is None and self.options.size_of == PACKED
        parts = self._layout.float_bytes() if known else []
        total = sum(size for _, size in parts)
        if total <= FLOAT_SHARE * self.fixed_bytes:
            return ""
        largest = sorted(parts, key=lambda part: -part[1])[:MOST_NAMED]
        named = ", ".join(f"{name} ({size:,})" for name, size in largest)
        more = f" and {len(parts) - len(largest)} more" if len(parts) > len(largest) else ""
        return f"; {total:,} bytes of it stay float: {named}{more} (mpsearch layers says why)"

    def problem(self, sensitivity: SensitivityTable) -> BitProblem:
        """The search problem under the budgets."""
        if not self.coded:
            return with_sensitivity(self._choices, self.table, sensitivity)
        costs, free = as_coded(self._priced, self.table, sensitivity), self._choices
        return build_problem(
            self.table, costs, sensitivity, self.candidates.allowed, self.options.budgets, free.objectives
        )

    def layers_step(self) -> LayerTable:
        """Writes options and layer table, once it is clear that the folder is free and the budgets can be met."""
        require_same_model(self.folder, self.loaded.model)
        self._note_refused(self._choices.precisions)  # there are no choices where the budgets cannot be met
        if self.device is not None and (said := not_counted(operations_beside(self.loaded.network.module))):
            self.console.note(said)
        origin = self.origin
        self.folder.write("config.toml", self.options.to_toml(self.folder.path))
        self.folder.write_json("layers.json", origin.to_json())
        return origin.table

    def _note_refused(self, precisions: tuple[Precision, ...]) -> None:
        if self.device is None:
            return
        refused = [str(precision) for precision in self.options.precisions if precision not in self.candidates.offered]
        if refused:
            self.console.note(f"device {self.device.name} does not run {', '.join(refused)}: not offered to the search")
        if said := not_counted(operations_beside(self.loaded.network.module)):
            self.console.note(said)
        missing = [] if self.device.table is None else self.device.table.missing(self.table, precisions)
        if missing:
            self.console.note(
                f"{len(missing)} of {len(self.table) * len(precisions)} costs have no row in {self.device.name} and "
                f"are fitted; see which: mpsearch layers --device {self.options.device}"
            )

    def stored_sensitivity(self) -> SensitivityTable | None:
        """The sensitivity cache where it is there and current."""
        path = self.folder.file(CACHE)
        table = load_table(path) if path.is_file() else None
        return table if table is not None and table.fingerprint == self._sensitivity_key else None

    @property
    def _sensitivity_key(self) -> str:
        return sensitivity_key(self.origin, self.options, self.candidates.precisions)

    def sensitivity_step(self) -> SensitivityTable:
        """The sensitivity cache: read when current, else measured, or grown from what is there, and written."""
        current = self.stored_sensitivity()
        if current is not None:
            self.console.current("sensitivity", "cache is current")
            return current
        path, loaded, options = self.folder.file(CACHE), self.loaded, self.options
        terms = len(widths(*self.candidates.precisions))
        spread = spread_scores(loaded, self.where, terms)
        if spread is None:
            loaded.require_memory(Stage.SENSITIVITY, *self.ahead, terms=terms)
        if loaded.data.val is not None:
            _ = loaded.judge  # its doubts about the float network are worth knowing before anything else is done
        precisions = self.candidates.precisions
        known = None
        if path.is_file():
            self.console.note(f"{CACHE} is of other {self._difference(load_table(path))}: what is new is measured")
            known = load_scores(path, loaded.network)
        count = len(split(loaded.calibration)[1])
        self._note_alone()
        with self.clock.timed("sensitivity"), self.console.progress("sensitivity", count) as advance:
            scores = measure(
                loaded.network,
                loaded.calibration,
                precisions,
                options.seed,
                scores_key(self.origin, options),
                known,
                lambda done, total: advance(done),
                likelihood=loaded.likelihood,
                symmetric=options.symmetric_bits,
                spread=spread,
            )
        table = scores.table(precisions, options.seed, self._sensitivity_key)
        save_cache(path, table, scores)
        return table

    def _note_alone(self) -> None:
        network = self.loaded.network
        hidden = without_gradient(network.module)
        alone = [name for name in network.table.names if name in hidden]
        if alone:
            self.console.note(
                f"no gradient shows what {len(alone)} of {len(network.table)} layers do (first: {alone[0]}), since "
                "rounding, a sign or an operation without a backward follows: each is rounded alone and the divergence "
                "measured, which takes longer"
            )

    def _difference(self, table: SensitivityTable) -> str:
        if table.precisions != self.candidates.precisions:
            return f"candidate bits ({', '.join(map(str, table.precisions))})"
        if table.samples != len(split(self.loaded.calibration)[1]):
            return f"images ({table.samples} of them judged)"
        if table.seed != self.options.seed:
            return f"seed ({table.seed})"
        return "images, weights, task or quantizer, or of another version of mpsearch"

    def search_step(self, problem: BitProblem) -> ParetoFront:
        """The Pareto front: read when current, else searched and written, with the costs it was searched with."""
        options = self.options
        settings = SearchSettings(population=options.population, generations=options.generations, seed=options.seed)
        key = front_key(problem, settings)
        if self.folder.current("costs.json", key) is not None and self.folder.file("front.json").is_file():
            self.console.current("search", "front is current")
            return read_front(self.folder)
        with self.clock.timed("search"), self.console.progress("search", settings.generations) as advance:
            checkpoint = self.folder.file(f"search-{key}.npz")
            front = search(problem, settings, checkpoint, lambda seen: advance(seen.generation, str(seen)))
        self.console.note(f"search: {course(front.hypervolume, settings)}, {len(front):,} points")
        self.folder.write("front.json", front.to_json())
        name = None if self.device is None else self.device.name
        self.folder.write_json("costs.json", {"key": key, **costs_json(self.costs, self.candidates.allowed, name)})
        return front

    def summary_step(self, chosen: Json) -> Json:
        """Writes `summary.json`; seconds of steps that were current are kept from the run that made them."""
        old = self.folder.read_json("summary.json") if self.folder.file("summary.json").is_file() else {}
        if not self.clock.seconds and old:
            return old
        seconds = {**old.get("seconds", {}), **{step: round(s, 2) for step, s in self.clock.seconds.items()}}
        summary = summarize(
            self.options,
            self.loaded.model,
            self.loaded.data,
            self.loaded.thresholds if self.options.task == DETECTION else None,
            self.candidates.pinned,
            chosen,
            self.costs_of(BitConfig.from_json(chosen["config"])),
            None if self.device is None else self.device.name,
            self.loaded.place,
            seconds,
            max(peak_rss_bytes(), old.get("peak_rss_bytes", 0)),
        )
        self.folder.write_json("summary.json", summary)
        return summary
