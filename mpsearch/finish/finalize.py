"""Finishing one configuration: reconstruct, write the packed file, read it back, measure it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hwmodel import BitConfig
from hwmodel.size import input_bytes, layer_bytes
from mpsearch.export.packed import fill_packed, layout_of, save_packed
from mpsearch.finish.evaluate import Judge
from mpsearch.tasks.figure import Figure
from recon.fit.checkpoint import Progress
from recon.fit.report import BlockReport
from recon.graph.network import Network
from recon.graph.samples import Samples
from recon.likelihood.likelihood import Likelihood
from recon.quantizers.coded import code_bits
from recon.quantizers.quantized import plainly_rounded, quantized
from recon.reconstruct import Prepared, reconstruct
from recon.settings import Settings


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished configuration. `predicted_bytes` is what the search took for `size_bytes`. `metrics` are those of the
    network by state and name: "float", "plain", the same bits by plain rounding, and "finished". `judged_by` says what
    the names mean, the task's first metric first, KL last. `shown` is what each state shows on the first validation
    samples, where the task has such a thing.
    """

    name: str
    config: BitConfig
    size_bytes: int
    predicted_bytes: int
    weights_only_bytes: float
    mean_weight_bits: float
    metrics: dict[str, dict[str, float]]
    judged_by: tuple[Figure, ...]
    validation_samples: int
    labelled: bool
    blocks: tuple[BlockReport, ...]
    seconds_reconstruct: float
    seconds_evaluate: float
    shown: dict[str, list[dict[str, list[Any]]]]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping; `config` is the canonical bit assignment."""
        return {**asdict(self), "config": self.config.to_json()}


def finish(
    name: str,
    network: Network,
    reference: str,
    samples: Samples,
    likelihood: Likelihood,
    config: BitConfig,
    settings: Settings,
    path: Path,
    progress: Progress,
    judge: Judge,
    on_block: Callable[[BlockReport], None],
    coded_bytes: Mapping[str, float],
    prepared: Prepared,
) -> Finished:
    """Reconstructs `network` at `config`, writes it to `path`, and measures what the written file computes.

    Entropy-coded layers together take no more than their `coded_bytes`, where these are known. `prepared` is the
    network for these samples and bits of inputs.
    """
    started = time.perf_counter()
    result = reconstruct(
        network,
        samples,
        config,
        settings,
        likelihood=likelihood,
        progress=progress,
        coded_bytes=coded_bytes,
        prepared=prepared,
        on_block=on_block,
    )
    size = save_packed(path, network, reference, result.layers)
    reconstructed = time.perf_counter()
    plain = plainly_rounded(network, network.leaves(samples), config, settings.symmetric)
    models = {"plain": quantized(network, plain).model, "finished": fill_packed(path, network).model}
    metrics = {"float": judge.truth, **{state: judge.measure(model) for state, model in models.items()}}
    shown = {state: judge.shown(model) for state, model in ({"float": network.model} | models).items()}
    weights_only = sum(code_bits(weight) for weight in result.layers.weights.values()) / 8
    finished = Finished(
        name=name,
        config=config,
        size_bytes=size,
        predicted_bytes=_predicted(network, reference, config, coded_bytes),
        weights_only_bytes=weights_only,
        mean_weight_bits=8 * weights_only / network.table.n_weights,
        metrics=metrics,
        judged_by=judge.figures,
        validation_samples=len(judge.split),
        labelled=judge.split.labelled,
        blocks=result.reports,
        seconds_reconstruct=reconstructed - started,
        shown=shown if any(shown.values()) else {},
        seconds_evaluate=time.perf_counter() - reconstructed,
    )
    progress.discard()
    return finished


def _predicted(network: Network, reference: str, config: BitConfig, coded_bytes: Mapping[str, float]) -> int:
    """The size of the file that a search would see: entropy-coded layers as they were coded in sensitivity or, where
    that is not known, about what their rate says."""
    pairs = list(zip(network.table, config.precisions, strict=True))
    coded = 0 if any(precision.rate for precision in config.precisions) else None
    fixed = layout_of(network, reference, any(input_bytes(*pair) for pair in pairs), coded).fixed_bytes()
    known = {
        layer.name: coded_bytes[layer.name] + input_bytes(layer, p) for layer, p in pairs if layer.name in coded_bytes
    }
    return fixed + sum(math.ceil(known.get(layer.name, layer_bytes(layer, p))) for layer, p in pairs)
