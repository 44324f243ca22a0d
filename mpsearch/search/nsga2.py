"""The evolutionary search: pymoo's NSGA-II on genes whose choices are ordered, reproducible and restartable."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.indicators.hv import HV

from hwmodel.errors import BudgetError, InputError
from mpsearch.search.baselines import exact_additive, greedy, greedy_path, hull, local_search, uniform
from mpsearch.search.front import ParetoFront, non_dominated
from mpsearch.search.problem import BitProblem, Genomes, within
from mpsearch.search.refine import fill_by_tangents, refine


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """`patience` generations without a relative gain of `tolerance` in hypervolume end the evolution;
    then the front is filled by linearized fronts and by local search, which looks at `neighbours` configurations at
    most; 0 leaves it as it is."""

    population: int = 200
    generations: int = 200
    seed: int = 0
    patience: int = 40
    tolerance: float = 1e-5
    neighbours: int = 13_000_000

    def __post_init__(self) -> None:
        for name, least in (("population", 8), ("generations", 1), ("seed", 0), ("patience", 1)):
            if getattr(self, name) < least:
                raise InputError(f"search: {name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Progress:
    """What a generation came to: for the terminal."""

    generation: int
    evaluations: int
    points: int
    hypervolume: float

    def __str__(self) -> str:
        return f"hypervolume {self.hypervolume:.4f}, {self.points:,} points"


@dataclass(slots=True)
class _State:
    """All that the next generation depends on."""

    genomes: Genomes
    rank: NDArray[np.float64]
    crowding: NDArray[np.float64]
    archive: Genomes
    objectives: NDArray[np.float64]  # of the archive
    rng: dict[str, Any]
    hypervolume: list[float]
    evaluations: int


def search(
    problem: BitProblem,
    settings: SearchSettings,
    checkpoint: Path | None = None,
    on_generation: Callable[[Progress], None] | None = None,
) -> ParetoFront:
    """The front of a problem, from the smallest configuration to the largest.

    Budgets on objectives do not cut the front off: the answer at the budget is polished by local search and joins it.
    Budgets on anything else are constraints that every point meets. All non-dominated configurations ever looked at are
    kept. With `checkpoint`, the state is written there after each generation and a search that was killed goes on from
    it and ends with the same front, bit for bit; the file goes when the search ends.

    Raises InputError where the checkpoint is damaged or of another search, BudgetError where nothing meets the budgets.
    """
    key = _fingerprint(problem, settings)
    state = _load(checkpoint, problem, key) if checkpoint and checkpoint.exists() else None
    box = _Box.of(problem)
    algorithm = _algorithm(problem, box, settings, state)
    while state is None or not _finished(state, settings):
        infills = algorithm.ask()
        if infills is None:  # every configuration near the population is already in it
            break
        genomes = infills.get("X").astype(np.int16)
        values = problem.values(genomes)
        _set_values(infills, problem, box, values)
        algorithm.tell(infills=infills)
        state = _advanced(state, problem, box, algorithm, genomes, values)
        if checkpoint:
            _save(checkpoint, state, key)
        if on_generation:
            on_generation(
                Progress(len(state.hypervolume), state.evaluations, len(state.archive), state.hypervolume[-1])
            )
    assert state is not None  # the first generation always has infills
    front = _front(problem, box, settings, state)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return front


def best_at_budget(problem: BitProblem, found: Genomes) -> Genomes | None:
    """The best genome (G,) within all budgets: local search from the best of `found` (P, G) and the plain answers."""
    starts = [start for start in (greedy(problem), exact_additive(problem)) if start is not None]
    starts += [genome for _, genome in uniform(problem)]
    candidates = np.concatenate([found, np.array(starts)])
    values = problem.values(candidates)
    fits = np.flatnonzero(within(problem.excess(values)))
    if not fits.size:
        return None
    best_found = [int(fits[values[fits, 0].argmin()])]
    plain = [int(index) for index in fits if len(found) <= index < len(found) + 2]
    ends = np.array([local_search(problem, candidates[index]) for index in dict.fromkeys(best_found + plain)])
    return np.asarray(ends[problem.values(ends)[:, 0].argmin()])


def course(history: Sequence[float], settings: SearchSettings) -> str:
    """How the hypervolume rose over the generations, and why they ended, in a line; the last value is the front's."""
    *generations, filled = history
    marks = sorted({0, len(generations) // 8, len(generations) // 3, len(generations) - 1})
    values = ", ".join(f"{generations[mark]:.4f} ({mark + 1})" for mark in marks)
    ended = "all generations" if len(generations) >= settings.generations else "it no longer moved"
    return f"hypervolume by generation {values}, {filled:.4f} filled; {ended}"


def hypervolume(problem: BitProblem, objectives: NDArray[np.float64]) -> float:
    """The share of the problem's box (loss on a log axis) that points (P, M) dominate: the measure of a front."""
    return _Box.of(problem).hypervolume(objectives)


@dataclass(frozen=True, slots=True)
class _Box:
    """Scales objectives to [0, 1]: loss on a log axis, because it spans decades; a monotone map keeps dominance."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, problem: BitProblem) -> _Box:
        losses = problem.values(np.stack([np.zeros(len(problem.genes)), problem.sizes - 1]).astype(np.int16))[:, 0]
        high = float(max(losses.max(), 1e-300))
        low = float(losses.min()) if 0 < losses.min() < high else 1e-9 * high
        rows = [problem.cost_names.index(name) for name in problem.objectives[1:]]
        costs, fixed = problem.costs[rows], problem.fixed[rows]
        least = np.minimum.reduceat(costs, problem.start, axis=1).sum(axis=1) + fixed
        most = np.maximum.reduceat(costs, problem.start, axis=1).sum(axis=1) + fixed
        return cls(np.append(np.log(low), least), np.append(np.log(high), most))

    def scaled(self, objectives: NDArray[np.float64]) -> NDArray[np.float64]:
        """Objectives (P, M) in units of the box."""
        logs = objectives.copy()
        logs[:, 0] = np.log(np.maximum(objectives[:, 0], 1e-300))
        return np.asarray((logs - self.low) / np.where(self.high > self.low, self.high - self.low, 1.0))

    def hypervolume(self, objectives: NDArray[np.float64]) -> float:
        """The share of the box that points (P, M) dominate."""
        return float(HV(ref_point=np.ones(len(self.low)))(self.scaled(objectives).clip(0, 1)))


class _Genes(Problem):  # type: ignore[misc]
    """What pymoo needs to know of the problem; values are set from outside."""

    def __init__(self, problem: BitProblem) -> None:
        super().__init__(
            n_var=len(problem.genes),
            n_obj=len(problem.objectives),
            n_ieq_constr=len(problem.constraints),
            xl=0,
            xu=problem.sizes - 1,
            vtype=int,
        )


class _UniformCrossover(Crossover):  # type: ignore[misc]
    """Each gene comes from one of two parents; half of the matings swap a run of neighbouring genes instead."""

    def __init__(self) -> None:
        super().__init__(2, 2, prob=0.9)

    def _do(self, _: Problem, parents: Genomes, *, random_state: np.random.Generator, **__: Any) -> Genomes:
        n_matings, n_genes = parents.shape[1:]
        swap = random_state.random((n_matings, n_genes)) < 0.5
        ends = np.sort(random_state.integers(0, n_genes + 1, (n_matings, 2)), axis=1)
        place = np.arange(n_genes)
        runs = (ends[:, :1] <= place) & (place < ends[:, 1:])
        swap = np.where(random_state.random((n_matings, 1)) < 0.5, swap, runs)
        return np.where(swap, parents[::-1], parents)


class _StepMutation(Mutation):  # type: ignore[misc]
    """Choices are ordered: genes step by one; in half of the children one gene steps up while another steps down."""

    def __init__(self) -> None:
        super().__init__(prob=1.0)

    def _do(self, problem: Problem, genomes: Genomes, *, random_state: np.random.Generator, **__: Any) -> Genomes:
        shape = genomes.shape
        rate = 1.0 / shape[1]
        step = np.where(random_state.random(shape) < rate, random_state.choice([-1, 1], shape), 0)
        exchange = np.flatnonzero(random_state.random(shape[0]) < 0.5)
        up, down = random_state.integers(0, shape[1], (2, len(exchange)))
        step[exchange, up] += 1
        step[exchange, down] -= 1
        jump = random_state.random(shape) < 0.1 * rate
        anywhere = np.floor(random_state.random(shape) * (problem.xu + 1))
        return np.where(jump, anywhere, np.clip(genomes + step, 0, problem.xu)).astype(genomes.dtype)


def _set_values(population: Population, problem: BitProblem, box: _Box, values: NDArray[np.float64]) -> None:
    population.set("F", box.scaled(problem.pick(values, problem.objectives)))
    if problem.constraints:
        excess = problem.excess(values, problem.constraints)
        population.set("G", np.where(excess <= 1e-12, 0.0, excess))


def _algorithm(problem: BitProblem, box: _Box, settings: SearchSettings, state: _State | None) -> NSGA2:
    start = _first_genomes(problem, settings) if state is None else state.genomes
    algorithm = NSGA2(
        pop_size=settings.population,
        sampling=start.astype(np.int64),
        crossover=_UniformCrossover(),
        mutation=_StepMutation(),
        seed=settings.seed,
    )
    algorithm.setup(_Genes(problem), termination=NoTermination())
    if state is not None:
        population = Population.new("X", start.astype(np.int64))
        _set_values(population, problem, box, problem.values(start))
        for individual, rank, crowding in zip(population, state.rank, state.crowding, strict=True):
            if not np.isnan(rank):  # infeasible individuals have none
                individual.set("rank", int(rank))
                individual.set("crowding", crowding)
        algorithm.pop = population
        algorithm.is_initialized = True
        algorithm.n_iter = len(state.hypervolume) + 1
        algorithm.random_state.bit_generator.state = state.rng
    return algorithm


def _first_genomes(problem: BitProblem, settings: SearchSettings) -> Genomes:
    """Good starts, thinned to half of the population, and random genomes around every mean precision."""
    rng = np.random.default_rng([settings.seed, 1])
    starts = [np.array([genome for _, genome in uniform(problem)])]
    for name in problem.objectives[1:]:
        price = problem.costs[problem.cost_names.index(name)]
        starts += [hull(problem, name), np.array(list(greedy_path(problem, price)))]
    if problem.budgets:
        starts += [answer[None] for answer in (greedy(problem), exact_additive(problem)) if answer is not None]
    half = settings.population // 2
    good = np.unique(np.concatenate(starts), axis=0)
    good = good[problem.values(good)[:, 0].argsort(kind="stable")]
    good = good[np.unique(np.linspace(0, len(good) - 1, half).astype(int))]
    centre = rng.random((4 * settings.population, 1)) * (problem.sizes - 1)
    random = np.rint(centre + rng.normal(size=(len(centre), len(problem.genes)))).clip(0, problem.sizes - 1)
    everything = np.concatenate([starts[0], good, random.astype(np.int16)])
    _, first = np.unique(everything, axis=0, return_index=True)
    return everything[np.sort(first)][: settings.population]


def _advanced(
    state: _State | None,
    problem: BitProblem,
    box: _Box,
    algorithm: NSGA2,
    genomes: Genomes,
    values: NDArray[np.float64],
) -> _State:
    """The state after a generation; `genomes` (P, G) and `values` (P, 1 + K) are those that it has looked at."""
    met = within(problem.excess(values, problem.constraints))
    archive, objectives = genomes[met], problem.pick(values[met], problem.objectives)
    if state is not None:
        archive, objectives = np.concatenate([state.archive, archive]), np.concatenate([state.objectives, objectives])
    kept = non_dominated(objectives)
    archive, objectives = archive[kept], objectives[kept]
    population = algorithm.pop
    history = [] if state is None else state.hypervolume
    return _State(
        genomes=population.get("X").astype(np.int16),
        rank=_numbers(population, "rank"),
        crowding=_numbers(population, "crowding"),
        archive=archive,
        objectives=objectives,
        rng=algorithm.random_state.bit_generator.state,
        hypervolume=[*history, box.hypervolume(objectives) if len(archive) else 0.0],
        evaluations=len(genomes) + (0 if state is None else state.evaluations),
    )


def _numbers(population: Population, name: str) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in population.get(name)], dtype=np.float64)


def _finished(state: _State, settings: SearchSettings) -> bool:
    history = state.hypervolume
    if len(history) >= settings.generations:
        return True
    if len(history) <= settings.patience:
        return False
    return history[-1] - history[-1 - settings.patience] <= settings.tolerance * history[-1]


def _front(problem: BitProblem, box: _Box, settings: SearchSettings, state: _State) -> ParetoFront:
    archive, seen = state.archive, 0
    if len(archive) and settings.neighbours:
        archive, tangent = fill_by_tangents(problem, archive)
        archive, near = refine(problem, archive, settings.neighbours)
        seen = tangent + near
    if problem.budgets:
        best = best_at_budget(problem, archive)
        if best is not None:
            archive = np.concatenate([archive, best[None]])
    if not len(archive):
        raise BudgetError(f"no configuration was found within {dict(problem.budgets)}; raise one of these budgets")
    objectives = problem.evaluate(archive)
    kept = non_dominated(objectives)
    archive, objectives = archive[kept], objectives[kept]
    return ParetoFront(
        layers=problem.layers,
        precisions=problem.precisions,
        names=problem.objectives,
        choices=problem.layer_choices(archive),
        objectives=objectives,
        budgets=problem.budgets,
        evaluations=state.evaluations + seen,
        hypervolume=(*state.hypervolume, box.hypervolume(objectives)),
        seed=settings.seed,
        fingerprint=problem.fingerprint,
    )


def _fingerprint(problem: BitProblem, settings: SearchSettings) -> str:
    """Of everything that the course of a search depends on."""
    terms = json.dumps([asdict(settings), problem.choices, problem.objectives, problem.budgets])
    digest = hashlib.sha256(terms.encode())
    for array in (problem.linear, problem.pair, problem.costs, problem.fixed):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _save(path: Path, state: _State, key: str) -> None:
    notes = {"key": key, "rng": state.rng, "hypervolume": state.hypervolume, "evaluations": state.evaluations}
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            genomes=state.genomes,
            rank=state.rank,
            crowding=state.crowding,
            archive=state.archive,
            notes=np.array(json.dumps(notes)),
        )
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _load(path: Path, problem: BitProblem, key: str) -> _State:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            notes = json.loads(str(data["notes"]))
            state = _State(
                data["genomes"],
                data["rank"],
                data["crowding"],
                data["archive"],
                problem.evaluate(data["archive"]),
                notes["rng"],
                notes["hypervolume"],
                notes["evaluations"],
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no search checkpoint ({error}); delete it to search anew") from None
    if notes["key"] != key:
        raise InputError(f"{path} is of another search (the problem or the settings differ); delete it to search anew")
    return state
