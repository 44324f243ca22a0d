"""The evolutionary search: pymoo's NSGA-II on genes whose choices are ordered, reproducible and restartable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.population import Population
from pymoo.core.termination import NoTermination

from hwmodel.errors import BudgetError
from mpsearch.optimization.baselines import exact_additive, greedy, greedy_path, hull, uniform
from mpsearch.optimization.box import Box
from mpsearch.optimization.checkpoint import State, load, save, search_key
from mpsearch.optimization.front import ParetoFront, non_dominated
from mpsearch.optimization.local import local_search
from mpsearch.optimization.operators import Genes, StepMutation, UniformCrossover
from mpsearch.optimization.problem import BitProblem, Genomes, within
from mpsearch.optimization.refine import fill_by_tangents, refine
from mpsearch.optimization.settings import SearchSettings


@dataclass(frozen=True, slots=True)
class Progress:
    """What a generation came to: for the terminal."""

    generation: int
    evaluations: int
    points: int
    hypervolume: float

    def __str__(self) -> str:
        return f"hypervolume {self.hypervolume:.4f}, {self.points:,} points"


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
    key = search_key(problem, settings)
    state = load(checkpoint, problem, key) if checkpoint and checkpoint.exists() else None
    box = Box.of(problem)
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
            save(checkpoint, state, key)
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


def _set_values(population: Population, problem: BitProblem, box: Box, values: NDArray[np.float64]) -> None:
    population.set("F", box.scaled(problem.pick(values, problem.objectives)))
    if problem.constraints:
        excess = problem.excess(values, problem.constraints)
        population.set("G", np.where(excess <= 1e-12, 0.0, excess))


def _algorithm(problem: BitProblem, box: Box, settings: SearchSettings, state: State | None) -> NSGA2:
    start = _first_genomes(problem, settings) if state is None else state.genomes
    algorithm = NSGA2(
        pop_size=settings.population,
        sampling=start.astype(np.int64),
        crossover=UniformCrossover(),
        mutation=StepMutation(),
        seed=settings.seed,
    )
    algorithm.setup(Genes(problem), termination=NoTermination())
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
    state: State | None,
    problem: BitProblem,
    box: Box,
    algorithm: NSGA2,
    genomes: Genomes,
    values: NDArray[np.float64],
) -> State:
    """The state after a generation; `genomes` (P, G) and `values` (P, 1 + K) are those that it has looked at."""
    met = within(problem.excess(values, problem.constraints))
    archive, objectives = genomes[met], problem.pick(values[met], problem.objectives)
    if state is not None:
        archive, objectives = np.concatenate([state.archive, archive]), np.concatenate([state.objectives, objectives])
    kept = non_dominated(objectives)
    archive, objectives = archive[kept], objectives[kept]
    population = algorithm.pop
    history = [] if state is None else state.hypervolume
    return State(
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


def _finished(state: State, settings: SearchSettings) -> bool:
    history = state.hypervolume
    if len(history) >= settings.generations:
        return True
    if len(history) <= settings.patience:
        return False
    return history[-1] - history[-1 - settings.patience] <= settings.tolerance * history[-1]


def _front(problem: BitProblem, box: Box, settings: SearchSettings, state: State) -> ParetoFront:
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
