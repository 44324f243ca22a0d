"""Finishing one configuration: reconstruct, write the packed file, read it back, measure it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hwmodel import BitConfig
from hwmodel.size import weights_only_bytes
from mpsearch.export.packed import fill_packed, save_packed
from mpsearch.finish.evaluate import Evaluation
from recon.fit.checkpoint import Progress
from recon.fit.report import BlockReport
from recon.graph.network import Network
from recon.graph.samples import Samples
from recon.quantizers.quantized import plainly_rounded, quantized
from recon.reconstruct import reconstruct
from recon.settings import Settings


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished configuration. Accuracies in percent (None without labels), `kl` in nats against the float model.

    `nearest` is the same configuration after plain rounding, the baseline.
    """

    name: str
    config: BitConfig
    size_bytes: int
    weights_only_bytes: float
    mean_weight_bits: float
    top1_nearest: float | None
    top1_reconstructed: float | None
    kl_nearest: float
    kl_reconstructed: float
    blocks: tuple[BlockReport, ...]
    seconds_reconstruct: float
    seconds_evaluate: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping; `config` is the canonical bit assignment."""
        return {**asdict(self), "config": self.config.to_json()}


Measure = Callable[[Any], Evaluation]


def finish(
    name: str,
    network: Network,
    reference: str,
    samples: Samples,
    config: BitConfig,
    settings: Settings,
    path: Path,
    progress: Progress,
    measure: Measure,
    on_block: Callable[[BlockReport], None],
) -> Finished:
    """Reconstructs `network` at `config`, writes it to `path`, and measures what the written file computes."""
    started = time.perf_counter()
    result = reconstruct(network, samples, config, settings, progress=progress, on_block=on_block)
    size = save_packed(path, network, reference, result.layers)
    reconstructed = time.perf_counter()
    plain = measure(
        quantized(network, plainly_rounded(network, network.leaves(samples), config, settings.symmetric)).model
    )
    learned = measure(fill_packed(path, network).model)
    weights_only = weights_only_bytes(network.table, config.wbits)
    finished = Finished(
        name=name,
        config=config,
        size_bytes=size,
        weights_only_bytes=weights_only,
        mean_weight_bits=8 * weights_only / network.table.n_weights,
        top1_nearest=plain.top1,
        top1_reconstructed=learned.top1,
        kl_nearest=_known(plain.kl_nats),
        kl_reconstructed=_known(learned.kl_nats),
        blocks=result.reports,
        seconds_reconstruct=reconstructed - started,
        seconds_evaluate=time.perf_counter() - reconstructed,
    )
    progress.discard()
    return finished


def _known(kl_nats: float | None) -> float:
    assert kl_nats is not None  # `measure` always compares with the float model
    return kl_nats
