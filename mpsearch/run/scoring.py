"""Sensitivity by many processes: each scores some of the batches of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cloudpickle

from hwmodel import InputError
from mpsearch.files.folder import RunFolder
from mpsearch.request.compute import SpreadOptions
from mpsearch.run.engines import Lost
from mpsearch.run.expected import Stage
from mpsearch.run.loaded import Loaded
from mpsearch.run.sent import engine_of, received, sent
from mpsearch.sensitivity.measure import Part, Scored, Spread, Terms, split
from recon.transforms.basis import balanced

TURNS = 4  # calls a worker makes at least, so that those that are quick take more
MOST_PARTS = 8  # of a call: what a worker that dies takes along
_scored: dict[str, Scored] = {}  # in a worker, by what it was sent


def spread_scores(loaded: Loaded, where: SpreadOptions, terms: int) -> Spread | None:
    """What scores batches by the workers that were asked for; None where this process does. The terms are the same,
    byte for byte, whatever their number, where workers have as many threads as this process.

    Raises InputError, once all others are done, that names the images whose worker died again and again.
    """
    if not where.spread:
        return None

    def score(scored: Scored, parts: Sequence[Part]) -> Iterator[tuple[Part, Terms]]:
        if not parts:
            return
        engine = engine_of(where, len(parts))
        loaded.require_memory(Stage.SENSITIVITY, terms=terms, workers=0 if engine.scheduler else engine.workers)
        size = max(1, min(MOST_PARTS, len(parts) // (TURNS * engine.workers)))
        calls = {str(start): (list(parts[start : start + size]),) for start in range(0, len(parts), size)}
        samples = sent(loaded, engine.threads, replace(loaded.data, val=None))
        own = scored.likelihood, scored.rounded, scored.alone, scored.seed
        shared = bytes(cloudpickle.dumps((samples, own)))
        loaded.console.note(
            f"sensitivity: {len(parts)} batches by {engine.workers} workers ({engine.backend}) of {engine.threads} "
            f"threads; each is sent {len(shared):,} bytes once"
        )
        lost: list[Part] = []
        for name, found in engine.calls(score_parts, shared, calls):
            if isinstance(found, Lost):
                lost += calls[name][0]
                loaded.console.note(f"batches from image {calls[name][0][0].start} on are given up: {found.reason}")
                continue
            yield from zip(calls[name][0], found, strict=True)
        if lost:
            raise InputError(
                f"the workers of {len(lost)} batches, the first from image {lost[0].start} on, died three times, out "
                "of memory or killed: start the same command again with fewer --workers"
            )

    return score


def score_parts(shared: bytes, parts: Sequence[Part]) -> list[Terms]:
    """In a worker: the terms of some parts."""
    key = hashlib.sha256(shared).hexdigest()
    if key not in _scored:
        samples, (likelihood, rounded, alone, seed) = cloudpickle.loads(shared)
        loaded = received(samples, RunFolder(Path()), "sensitivity")
        network = balanced(loaded.network)
        judging = split(loaded.calibration.single())[1]
        _scored.clear()
        _scored[key] = Scored(network, network.leaves(judging), likelihood, rounded, alone, seed)
    return [_scored[key].of(part) for part in parts]
