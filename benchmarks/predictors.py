"""What could predict the loss of a bit assignment: the cache, and what it is held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.optimization.baselines import exact_additive
from mpsearch.optimization.build import build_problem
from mpsearch.optimization.nsga2 import best_at_budget
from mpsearch.optimization.problem import BitProblem, Genomes
from mpsearch.run.steps import Run
from mpsearch.sensitivity.measure import change, measure, split
from mpsearch.sensitivity.table import SensitivityTable
from recon.compute.store import Store
from recon.graph.network import Network
from recon.graph.unit_by_unit import Passing
from recon.likelihood.heads import Categorical
from recon.likelihood.likelihood import CLASSIFIER
from recon.quantizers.learned import bias_of
from recon.quantizers.nearest import nearest
from recon.statistics.fisher import fisher_diagonal
from recon.transforms.basis import balanced

Errors = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Predictor:
    """Predicts the loss of genomes (P, L) of a problem; `best` finds the one with the least within the budgets."""

    name: str
    loss: Callable[[BitProblem, Genomes], NDArray[np.float64]]
    best: Callable[[BitProblem], Genomes | None]


def predictors(job: Run) -> list[Predictor]:
    """All predictors; but for size and weight error, from the same weight roundings and the same images."""
    network, precisions = balanced(job.loaded.network), job.candidates.precisions
    images = network.leaves(split(job.loaded.calibration)[1])
    scores = measure(job.loaded.network, job.loaded.calibration, precisions, 0, "bench")  # balances by itself
    table, believed = scores.table(precisions, 0, "bench"), scores.shrinkage(precisions)
    errors: dict[str, Errors] = {
        name: [change(network, name, rounded) for rounded in scores.rounded.values()]  # type: ignore[misc]
        for name in scores.layers
    }
    reference, changes = one_at_a_time(network, images, errors)
    kl = torch.tensor([[divergence(reference, reference + moved) for moved in row] for row in changes])

    def alone(intra: NDArray[np.float64]) -> SensitivityTable:
        return replace(table, intra=intra.clip(0)).additive()

    return [
        Predictor("size", lambda problem, genomes: -problem.values(genomes)[:, 1], lambda problem: None),
        quadratic(job, "weight MSE", alone(weight_mse(network, job))),
        quadratic(job, "diagonal Fisher, intra-layer", alone(table.diagonal)),
        quadratic(job, "BRECQ: intra-layer, 2-bit pairs in a block", brecq(table, network, images, errors)),
        quadratic(job, "full Fisher, intra-layer", alone(0.5 * np.square(scores.score.astype(float)).mean(0))),
        quadratic(job, "full Fisher, inter-layer in full", replace(table, inter=table.inter / believed)),
        quadratic(job, "ours: full Fisher steadied, inter-layer shrunk", table),
        quadratic(job, "KL of one layer at a time", alone(kl.double().numpy())),
        superposition(job, alone(kl.double().numpy()), reference, changes),
    ]


def quadratic(job: Run, name: str, table: SensitivityTable) -> Predictor:
    """A predictor made of a sensitivity table."""

    def under(problem: BitProblem) -> BitProblem:
        return build_problem(job.table, job.costs, table, budgets=dict(problem.budgets))

    def best(problem: BitProblem) -> Genomes | None:
        start = exact_additive(under(problem))
        return None if start is None else best_at_budget(under(problem), start[None])

    return Predictor(name, lambda problem, genomes: under(problem).values(genomes)[:, 0], best)


def weight_mse(network: Network, job: Run) -> NDArray[np.float64]:
    """‖Q(W) − W‖² of every layer at every precision (L, C), plainly rounded."""
    weights = [network.layer(name).weight.detach() for name in job.table.names]
    return np.array(
        [[float((nearest(w, p).dequantize() - w).square().sum()) for p in job.candidates.precisions] for w in weights]
    )


@torch.no_grad()
def brecq(
    table: SensitivityTable, network: Network, images: Sequence[Tensor], errors: dict[str, Errors]
) -> SensitivityTable:
    """½ E[Σ F δ²] of the outputs of blocks: of each layer alone, and of pairs inside a block at the lowest bits
    (BRECQ, section 3.4)."""
    fisher = fisher_diagonal(network, images, CLASSIFIER, 0)
    n_choices = len(table.precisions)
    place = {name: index for index, name in enumerate(table.layers)}
    intra, inter = np.zeros_like(table.intra), np.zeros_like(table.inter)
    walk = Walk(network, images)
    for index, unit in enumerate(network.units):
        truth, weights = walk.written(index), fisher[unit.name]

        def loss(choice: dict[str, int], index=index, weights=weights, truth=truth) -> float:  # type: ignore[no-untyped-def]
            with Changed(network, errors, choice):
                moved = walk.written(index)
            parts = zip(weights, moved, truth, strict=True)
            total = sum(float((f * (a.float() - b.float()).square()).sum()) for f, a, b in parts)
            return 0.5 * total / len(images[0])

        for name in unit.layers:
            intra[place[name]] = [loss({name: choice}) for choice in range(n_choices)]
        for one, two in combinations(unit.layers, 2):
            at = place[one] * n_choices, place[two] * n_choices
            pair = loss({one: 0, two: 0}) - intra[place[one], 0] - intra[place[two], 0]
            inter[at] = inter[at[::-1]] = pair / 2
        walk.take(index, truth)
    return replace(table, intra=intra, inter=inter)


class Walk:
    """What passes between the units of a network for samples, whose tensors are (N, …), in fast arithmetic."""

    def __init__(self, network: Network, leaves: Sequence[Tensor]) -> None:
        self.units, self.store = network.units, Store(2**34, network.device)
        (self.result,) = Passing(network, leaves).order
        inputs = [node.name for node in network.module.graph.nodes if node.op == "placeholder"]
        self.values = dict(zip(inputs, leaves, strict=True))

    def written(self, index: int, values: dict[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """What a unit makes of the values, of those that were taken where none are given."""
        unit, known = self.units[index], values or self.values
        return self.store.map(unit.module, [known[name] for name in unit.reads])

    def take(self, index: int, written: Sequence[Tensor]) -> None:
        """Takes what a unit has made."""
        self.values.update(zip(self.units[index].writes, written, strict=True))

    def end(self, index: int) -> Tensor:
        """The network's output where the units before `index` have given what was taken."""
        known = dict(self.values)
        for at in range(index, len(self.units)):
            known.update(zip(self.units[at].writes, self.written(at, known), strict=True))
        result: Tensor = known[self.result].float()
        return result


@torch.inference_mode()
def one_at_a_time(network: Network, images: Sequence[Tensor], errors: dict[str, Errors]) -> tuple[Tensor, Tensor]:
    """The float logits (N, classes), and their change (L, C, N, classes) by each layer at each precision alone.

    The part of the network before the layer's unit is run once for all.
    """
    changes = []
    walk = Walk(network, images)
    reference = walk.end(0)
    for index, unit in enumerate(network.units):
        for name in unit.layers:
            for choice in range(len(errors[name])):
                with Changed(network, errors, {name: choice}):
                    changes.append(walk.end(index) - reference)
        walk.take(index, walk.written(index))
    assert [name for unit in network.units for name in unit.layers] == list(network.table.names)
    return reference, torch.stack(changes).view(len(errors), -1, *reference.shape)


def divergence(reference: Tensor, logits: Tensor) -> float:
    """The mean KL divergence in nats of logits (N, classes)."""
    return float(Categorical().divergence(reference, logits).mean())


class Changed:
    """Gives layers of a network the weight and bias of a choice; a context manager."""

    def __init__(self, network: Network, errors: dict[str, Errors], choice: dict[str, int]) -> None:
        self.changes = [(network.layer(name), errors[name][index]) for name, index in choice.items()]

    def __enter__(self) -> None:
        self.floats = [(layer.weight.data, bias_of(layer).data) for layer, _ in self.changes]
        for layer, (error, bias) in self.changes:
            layer.weight.data = layer.weight.data + error
            bias_of(layer).data = bias_of(layer).data + bias

    def __exit__(self, *_: object) -> None:
        for (layer, _), (weight, bias) in zip(self.changes, self.floats, strict=True):
            layer.weight.data, bias_of(layer).data = weight, bias


def superposition(job: Run, start: SensitivityTable, reference: Tensor, changes: Tensor) -> Predictor:
    """The KL divergence that the sum of the logits' changes (L, C, N, classes) makes; its best by local search from the
    best sum of divergences."""

    def moved(choice: NDArray[np.integer]) -> Tensor:
        logits = reference.clone()
        for row, index in zip(changes, choice, strict=True):
            logits += row[index]
        return logits

    def best(problem: BitProblem) -> Genomes | None:
        genome = quadratic(job, "", start).best(problem)
        if genome is None:
            return None
        logits, found = moved(genome), True
        least = divergence(reference, logits)
        while found:
            found = False
            for other in _moves(problem, genome):
                near = logits.clone()
                for layer in np.flatnonzero(other != genome):
                    near += changes[layer, other[layer]] - changes[layer, genome[layer]]
                value = divergence(reference, near)
                if value < least - 1e-6:
                    genome, logits, least, found = other, near, value, True
                    break
        return genome

    return Predictor(
        "superposition of logits",
        lambda _, genomes: np.array([divergence(reference, moved(genome)) for genome in genomes]),
        best,
    )


def _moves(problem: BitProblem, genome: Genomes) -> Genomes:
    """The genomes (M, L) within the budgets that differ by one step up, with or without another step down."""
    rows = []
    up = [index for index in range(len(genome)) if genome[index] + 1 < problem.sizes[index]]
    down = [index for index in range(len(genome)) if genome[index]]
    for one in up:
        for other in [None, *down]:
            if one == other:
                continue
            row = genome.copy()
            row[one] += 1
            if other is not None:
                row[other] -= 1
            rows.append(row)
    moved = np.array(rows)
    return moved[problem.feasible(moved)]
