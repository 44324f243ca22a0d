"""The steps of a run, in order: each writes one file into the run folder and is skipped when that is current."""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hwmodel import BitConfig, BudgetError, CostTable, InputError, LayerTable, Precision
from hwmodel.cost import layer_costs
from hwmodel.device import DeviceSpec, load_device
from hwmodel.latency import with_device
from hwmodel.size import PackedLayout, cost_table
from mpsearch.export.packed import layout_of
from mpsearch.files.folder import Json, RunFolder, fingerprint
from mpsearch.finish.evaluate import Evaluation, evaluate, logits, score
from mpsearch.finish.finalize import Finished, finish
from mpsearch.request.budgets import COSTS, NEED_DEVICE, default_objectives, describe
from mpsearch.request.edges import pinned_edges
from mpsearch.request.options import RunOptions
from mpsearch.request.rules import Rule, allowed_precisions, parse_rule, parse_tie, tied
from mpsearch.run.summary import summarize
from mpsearch.search.build import build_problem, with_budgets
from mpsearch.search.front import ParetoFront
from mpsearch.search.nsga2 import course, search
from mpsearch.search.problem import BitProblem, cheapest
from mpsearch.search.settings import SearchSettings
from mpsearch.sensitivity.cache import load_scores, load_table, save_cache
from mpsearch.sensitivity.measure import measure, split
from mpsearch.sensitivity.scores import METRIC
from mpsearch.sensitivity.table import SensitivityTable
from mpsearch.show.console import Console
from mpsearch.sources.distilled import DISTILLED, MEASURED, make_distilled, read_distilled
from mpsearch.sources.images import DataSource, load_data, normalize
from mpsearch.sources.models import LoadedModel, load_model
from recon.compute.arithmetic import avoid_slow_kernels, best_device, keep_freed_memory
from recon.fit.checkpoint import Progress
from recon.graph.granularity import regroup
from recon.graph.network import Network, trace
from recon.settings import Settings

CACHE = "sensitivity.safetensors"


@dataclass
class Run:
    """One run: its options, its folder, and what its steps have loaded so far.

    `settings` is how finished models are reconstructed. Raises InputError, before anything is loaded, where the options
    make none.
    """

    options: RunOptions
    folder: RunFolder
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        self.settings = Settings(
            steps=options.steps,
            seed=options.seed,
            granularity=options.granularity,  # type: ignore[arg-type]
            symmetric=options.symmetric,
        )

    @cached_property
    def model(self) -> LoadedModel:
        """The float model."""
        weights = Path(self.options.weights) if self.options.weights else None
        return load_model(self.options.model, weights, demo=self.options.demo)

    @cached_property
    def network(self) -> Network:
        """The traced model, on the compute device."""
        keep_freed_memory()
        model = self.model.model.to(best_device()).to(memory_format=torch.channels_last)
        network = trace(model, self.model.input_size, self.model.reference)
        avoid_slow_kernels(network.model)
        return network

    @cached_property
    def data(self) -> DataSource:
        """The calibration and validation images."""
        if self.options.data == DISTILLED:
            return self._distilled()
        return load_data(
            self.options.data,
            input_size=self.model.input_size,
            calib_samples=self.options.samples,
            val_samples=self.options.val_samples or None,
            seed=self.options.seed,
            classes=self.model.classes,
        )

    def _distilled(self) -> DataSource:
        what = self.model, self.options.samples, self.options.seed, self.folder.file("distilled.npz")
        kept = read_distilled(*what)
        if kept is not None:
            return kept
        total = self.options.samples + MEASURED
        with self._timed("distillation"), self.console.progress("distillation", total) as advance:
            return make_distilled(*what, lambda done, _: advance(done))

    @cached_property
    def calibration(self) -> torch.Tensor:
        """The calibration images (N, C, H, W), normalised for the model."""
        return normalize(self.data.calib.x, self.model.mean, self.model.std)

    @cached_property
    def table(self) -> LayerTable:
        """The layer table, layers tied as asked for."""
        return tied(self.network.table, map(parse_tie, self.options.tie))

    @cached_property
    def layout(self) -> PackedLayout:
        """What a packed file of this model looks like."""
        return layout_of(self.network, self.model.reference, bool(self.options.abits))

    @cached_property
    def device(self) -> DeviceSpec | None:
        """The device whose latency and energy count."""
        return None if self.options.device is None else load_device(self.options.device)

    @cached_property
    def offered(self) -> tuple[Precision, ...]:
        """The candidates that were asked for and, where there is a device, that it runs."""
        wanted = self.options.precisions
        if self.device is None:
            return wanted
        runs = tuple(precision for precision in wanted if precision in self.device.kernels)
        if not runs:
            raise InputError(
                f"device {self.device.name} runs none of {', '.join(map(str, wanted))}; it runs "
                f"{', '.join(map(str, self.device.precisions))}: ask for those with --wbits and --abits"
            )
        return runs

    @cached_property
    def pinned(self) -> tuple[str, ...]:
        """Edge layers held at 8 bits."""
        edge = self.options.edge
        if self.device is not None and edge not in self.device.kernels:
            if self.options.edges == "8":
                raise InputError(f"device {self.device.name} does not run {edge}; take --edges free")
            return ()
        given = {rule.layer for rule in self._rules if not rule.forbids}
        edges = pinned_edges(self.table, self._costs_at((edge,)), self.options.budgets, self.options.edges)
        return tuple(name for name in edges if name not in given)

    @property
    def _rules(self) -> list[Rule]:
        return [parse_rule(text) for text in self.options.fix]

    @cached_property
    def allowed(self) -> dict[str, tuple[Precision, ...]]:
        """What every layer may have."""
        allowed = allowed_precisions(self.table.names, self.offered, self.pinned, self.options.edge, self._rules)
        if self.device is None:
            return allowed
        for name, precisions in allowed.items():
            allowed[name] = tuple(precision for precision in precisions if precision in self.device.kernels)
            if not allowed[name]:
                refused, runs = ", ".join(map(str, precisions)), ", ".join(map(str, self.device.precisions))
                raise InputError(f"--fix {name}: device {self.device.name} does not run {refused}; it runs {runs}")
        return allowed

    @cached_property
    def precisions(self) -> tuple[Precision, ...]:
        """Candidates, 8 bits where an edge layer is held there, and what single layers are fixed to."""
        return tuple(sorted({*self.offered, *(p for precisions in self.allowed.values() for p in precisions)}))

    @cached_property
    def costs(self) -> CostTable:
        """Sizes, bit operations and, where there is a device, latency and energy per layer and candidate."""
        return self._costs_at(self.precisions)

    def _costs_at(self, precisions: tuple[Precision, ...]) -> CostTable:
        costs = cost_table(self.layout, precisions)
        if self.device is None:
            return costs
        costs = with_device(costs, self.table, self.device)
        if "energy_j" in (*self.options.budgets, *self.options.objectives) and costs.energy_j is None:
            raise InputError(f"device {self.device.name} gives no energy; budget its latency, or name another device")
        return costs

    @property
    def objectives(self) -> tuple[str, ...]:
        """What the front spans beside the loss."""
        chosen = self.options.objectives
        return chosen or default_objectives(self.options.budgets, self.device is not None)

    @cached_property
    def float_logits(self) -> torch.Tensor:
        """The float model's logits on the validation images, what quantized ones are measured against."""
        return logits(self.network.model, self._validation, self.model.mean, self.model.std)

    @property
    def _validation(self) -> Any:
        if self.data.val is None:
            raise InputError("measuring needs a val/ folder beside the calibration images")
        return self.data.val

    def check_folder(self) -> None:
        """Makes the folder and refuses one that holds another model's run."""
        self.folder.prepare()
        if self.folder.file("layers.json").is_file():
            there = self.folder.read_json("layers.json")
            if there.get("fingerprint") != self.model.fingerprint:
                model = there.get("table", {}).get("model", "another model")
                raise InputError(
                    f"{self.folder.path} holds a run of {model} with other weights, not of {self.model.reference} as "
                    "given; name another folder with --out"
                )

    def layers_step(self) -> LayerTable:
        """Writes options and layer table, once it is clear that the folder is free and the budget can be met."""
        self.check_folder()
        self.check_budget()
        self._note_refused()
        self.folder.write("config.toml", self.options.to_toml())
        return self.write_layers()

    def write_layers(self) -> LayerTable:
        """Writes the layer table."""
        data = {"fingerprint": self.model.fingerprint, "table": self.table.to_json()}
        self.folder.write_json("layers.json", data)
        return self.table

    def _note_refused(self) -> None:
        refused = [str(precision) for precision in self.options.precisions if precision not in self.offered]
        if self.device is not None and refused:
            self.console.note(f"device {self.device.name} does not run {', '.join(refused)}: not offered to the search")
        if self.device is not None and self.device.table is not None:
            missing = self.device.table.missing(self.table, self.precisions)
            if missing:
                of = f"{len(missing)} of {len(self.table) * len(self.precisions)}"
                self.console.note(
                    f"{of} costs have no row in {self.device.name} and are fitted; see which: mpsearch layers --device "
                    f"{self.options.device}"
                )

    @cached_property
    def sensitivity_key(self) -> str:
        """What the sensitivity cache depends on."""
        bits = [str(precision) for precision in self.precisions]
        return fingerprint(METRIC, self._scored, self.data.calib.fingerprint, bits)

    @property
    def _scored(self) -> list[Any]:
        """What scores depend on, but for images and bits."""
        return [self.model.fingerprint, self.options.seed, self.options.symmetric]

    def sensitivity_step(self) -> SensitivityTable:
        """The sensitivity cache: read when current, else measured and written."""
        path = self.folder.file(CACHE)
        if path.is_file():
            table = load_table(path)
            if table.fingerprint == self.sensitivity_key:
                self.console.current("sensitivity", "cache is current")
                return table
            self.console.note(f"{CACHE} is of other {self._difference(table)}: what is new is measured")
        known = load_scores(path, self.network) if path.is_file() else None
        seed = self.options.seed
        with (
            self._timed("sensitivity"),
            self.console.progress("sensitivity", len(split(self.calibration)[1])) as advance,
        ):
            scores = measure(
                self.network,
                self.calibration,
                self.precisions,
                seed,
                fingerprint(METRIC, self._scored),
                known,
                lambda done, total: advance(done),
                symmetric=self.options.symmetric,
            )
        table = scores.table(self.precisions, seed, self.sensitivity_key)
        save_cache(path, table, scores)
        return table

    def _difference(self, table: SensitivityTable) -> str:
        if table.precisions != self.precisions:
            return f"candidate bits ({', '.join(map(str, table.precisions))})"
        if table.samples != len(split(self.calibration)[1]):
            return f"images ({table.samples} of them judged)"
        if table.seed != self.options.seed:
            return f"seed ({table.seed})"
        return "images, weights or quantizer"

    def problem(self, sensitivity: SensitivityTable) -> BitProblem:
        """The search problem under the budgets."""
        return with_budgets(self._unbounded(sensitivity), self.options.budgets)

    def _unbounded(self, sensitivity: SensitivityTable) -> BitProblem:
        objectives = ("loss", *self.objectives)
        return build_problem(self.table, self.costs, sensitivity, self.allowed, objectives=objectives)

    def check_budget(self) -> None:
        """Raises BudgetError, before anything is measured, where no configuration fits: it names the nearest."""
        problem = self._unbounded(SensitivityTable.unmeasured(self.table.names, self.precisions))
        for name, limit in self.options.budgets.items():
            genome = cheapest(problem, name)
            least = float(problem.pick(problem.values(genome[None]), [name])[0, 0])
            if least <= limit * (1 + 1e-12):
                continue
            cost = COSTS[name]
            on = f" on {self.device.name}" if self.device is not None and name in NEED_DEVICE else ""
            what = "smallest file" if name == "size_bytes" else f"{cost.least} configuration"
            raise BudgetError(
                f"the {cost.title} budget is {cost.text(limit)}, but the {what} that candidate bits "
                f"{', '.join(map(str, self.offered))} can reach{on} has {cost.text(least)} "
                f"({describe(problem.config(genome))}); raise {cost.option} or allow fewer bits with --wbits"
            )
        with_budgets(problem, self.options.budgets)

    def search_step(self, sensitivity: SensitivityTable) -> ParetoFront:
        """The Pareto front: read when current, else searched and written, with the costs it was searched with."""
        options = self.options
        settings = SearchSettings(population=options.population, generations=options.generations, seed=options.seed)
        problem = self.problem(sensitivity)
        key = fingerprint(
            self.sensitivity_key,
            asdict(settings),
            problem.budgets,
            problem.choices,
            problem.genes,
            problem.objectives,
            problem.costs.tolist(),
            self.layout.fixed_bytes(),
        )
        path = self.folder.file("front.json")
        costs = self.folder.current("costs.json", key)
        if costs is not None and path.is_file():
            self.console.current("search", "front is current")
            return ParetoFront.from_json(path.read_text(encoding="utf-8"))
        with self._timed("search"), self.console.progress("search", settings.generations) as advance:
            checkpoint = self.folder.file(f"search-{key}.npz")
            front = search(problem, settings, checkpoint, lambda seen: advance(seen.generation, str(seen)))
        self.console.note(f"search: {course(front.hypervolume, settings)}, {len(front):,} points")
        self.folder.write("front.json", front.to_json())
        self.folder.write_json("costs.json", {"key": key, **self._costs_json()})
        return front

    def _costs_json(self) -> Json:
        costs = self.costs
        data: Json = {
            "layers": list(costs.layers),
            "precisions": [str(precision) for precision in costs.precisions],
            "allowed": [[str(precision) for precision in self.allowed[name]] for name in costs.layers],
            "fixed_bytes": costs.fixed_bytes,
            "weight_bytes": costs.weight_bytes.tolist(),
            "code_bits": costs.code_bits.tolist(),
            "bops": costs.bops.tolist(),
        }
        if self.device is not None:
            data["device"] = self.device.name
        for name in NEED_DEVICE:
            array = getattr(costs, name)
            if array is not None:
                data[name] = array.tolist()
        return data

    def finalize_step(self, config: BitConfig, name: str) -> Json:
        """One finished model: `chosen/NAME.json` and `model-NAME.safetensors`, made unless current."""
        key = fingerprint(
            self.model.fingerprint,
            self.data.calib.fingerprint,
            self._validation.fingerprint,
            config.to_json(),
            asdict(self.settings),
            version("mpsearch"),
        )
        # Changes no result, so it is not in the key.
        settings = replace(self.settings, memory_bytes=self.options.cache_memory_bytes)
        path = self.folder.file(f"model-{name}.safetensors")
        done = self.folder.current(f"chosen/{name}.json", key)
        if done is not None and path.is_file() and path.stat().st_size == done["size_bytes"]:
            self.console.current("finalize", f"{path.name} is current")
            return done
        work = Progress(self.folder.file(f"finalize-{name}.partial"), key)
        count = len(regroup(self.network, settings.granularity).units)
        with self._timed("finalize"), self.console.finalizing(count, settings) as watch:
            finished = finish(
                name,
                self.network,
                self.model.reference,
                self.calibration,
                config,
                settings,
                path,
                work,
                self.measure,
                watch.block,
            )
        data = {"key": key, **self._compared(finished)}
        self.folder.write_json(f"chosen/{name}.json", data)
        return data

    def _compared(self, finished: Finished) -> Json:
        truth = score(self.float_logits, self._validation.y)
        return {"top1_float": truth.top1, "validation_images": truth.count, **finished.to_json()}

    def measure(self, model: torch.nn.Module) -> Evaluation:
        """Accuracy and KL divergence from the float model on the validation images."""
        return evaluate(model, self._validation, self.model.mean, self.model.std, reference_logits=self.float_logits)

    def costs_of(self, config: BitConfig) -> dict[str, float]:
        """What a configuration costs, by the names that budgets have."""
        arrays = layer_costs(self.table, self.costs, self.precisions)
        choice = [self.precisions.index(precision) for precision in config.precisions]
        sums = {name: float(array[range(len(choice)), choice].sum()) for name, array in arrays.items()}
        return {**sums, "size_bytes": sums["size_bytes"] + self.costs.fixed_bytes}

    def summary_step(self, chosen: Json) -> Json:
        """Writes `summary.json`; seconds of steps that were current are kept from the run that made them."""
        old = self.folder.read_json("summary.json") if self.folder.file("summary.json").is_file() else {}
        seconds = {**old.get("seconds", {}), **{step: round(s, 2) for step, s in self.seconds.items()}}
        peak = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, old.get("peak_rss_bytes", 0))
        costs = self.costs_of(BitConfig.from_json(chosen["config"]))
        device = None if self.device is None else self.device.name
        summary = summarize(self.options, self.model, self.data, self.pinned, chosen, costs, device, seconds, peak)
        if not self.seconds and old:
            return old
        self.folder.write_json("summary.json", summary)
        return summary

    def _timed(self, step: str) -> _Timer:
        return _Timer(step, self.seconds)


class _Timer:
    def __init__(self, step: str, seconds: dict[str, float]) -> None:
        self.step, self.seconds = step, seconds

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.step] = time.perf_counter() - self.started
