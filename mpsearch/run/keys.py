"""What the files of a run folder depend on: a file is current while its key is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from types import FunctionType

from torch.fx import Node
from torch.utils._pytree import tree_leaves

from hwmodel import BitConfig, Precision
from mpsearch.files.fingerprint import fingerprint
from mpsearch.optimization.problem import BitProblem
from mpsearch.optimization.settings import SearchSettings
from mpsearch.request.options import FinishOptions, RunOptions
from mpsearch.run.artifacts import Origin, heads_json
from mpsearch.run.loaded import Loaded
from mpsearch.sensitivity.scores import METRIC
from mpsearch.sources.factory import factory_file
from recon.graph.network import Network


def origin_key(options: RunOptions) -> str:
    """The options that `layers.json` depends on."""
    names = (
        "model",
        "weights",
        "weights_key",
        "input_size",
        "data",
        "samples",
        "seed",
        "tie",
        "annotations",
        "fit",
        "size_of",
    )
    code = task_digest(options.task), task_digest(options.decode or "")
    return fingerprint(*[getattr(options, name) for name in names], bool(options.abits), *code)


def task_digest(reference: str) -> str:
    """What a task depends on: its name, and the text of the user's file, wherever that lies."""
    code = factory_file(reference)
    name = reference if code is None else f"{code.name}:{reference.rpartition(':')[2]}"
    return fingerprint(name, code.read_text("utf-8") if code is not None and code.is_file() else "")


def graph_digest(network: Network) -> str:
    """What a network computes beside its weights: its operations in order, with their numbers, not the code they are
    written in. Devices are left out."""
    lines = []
    for node in network.module.graph.nodes:
        leaves = tree_leaves((node.args, node.kwargs))
        parts = [part for part in leaves if isinstance(part, Node | int | float | str | None)]
        target = node.target.__name__ if isinstance(node.target, FunctionType) else node.target
        lines.append(f"{node.op} {target} {parts}")
    return fingerprint(lines)


def scores_key(origin: Origin, options: FinishOptions) -> str:
    """What sensitivity scores depend on beside samples and bits."""
    return fingerprint(
        METRIC,
        version("mpsearch"),
        origin.model,
        origin.graph,
        origin.heads,
        options.seed,
        options.symmetric_bits,
        options.channel_steps,
    )


def sensitivity_key(origin: Origin, options: FinishOptions, precisions: tuple[Precision, ...]) -> str:
    """What the sensitivity cache depends on."""
    return fingerprint(scores_key(origin, options), origin.images, [str(precision) for precision in precisions])


def front_key(problem: BitProblem, settings: SearchSettings) -> str:
    """What a front depends on; the sensitivity cache is in the problem's fingerprint."""
    return fingerprint(
        problem.fingerprint,
        asdict(settings),
        problem.budgets,
        problem.choices,
        problem.genes,
        problem.objectives,
        problem.costs.tolist(),
        problem.fixed.tolist(),
    )


def finished_key(loaded: Loaded, config: BitConfig, coded_bytes: Mapping[str, float]) -> str:
    """What a finished configuration depends on, with what its entropy-coded layers may take. What changes no result,
    such as memory, is not in it."""
    return fingerprint(
        loaded.model.fingerprint,
        graph_digest(loaded.network),
        loaded.data.calib.fingerprint,
        loaded.validation.fingerprint,
        heads_json(loaded.likelihood),
        task_digest(loaded.options.task),
        (task_digest(loaded.options.decode or ""), loaded.options.confidence, loaded.options.nms),
        config.to_json(),
        coded_bytes,
        asdict(loaded.settings),
        loaded.options.channel_steps,
        version("mpsearch"),
    )
