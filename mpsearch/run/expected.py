"""How much memory a run is expected to need, by its graph and its options, before anything long is begun.

Counted is what is large: samples, maps of a batch, second moments of what layers read, errors of weights by width, and
the inputs and outputs of units. What the process has when it asks is measured. On a GPU only samples count here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from hwmodel.errors import InputError
from mpsearch.finish.evaluate import BATCH as JUDGED
from mpsearch.run.memory import Room
from mpsearch.sensitivity.measure import SENSITIVITY_BATCH
from recon.compute.arithmetic import BATCH, fast_dtype
from recon.compute.store import ALIVE
from recon.graph.footprint import alive_values, kept_values, values_of
from recon.graph.granularity import regroup
from recon.graph.layers import Embedding
from recon.graph.network import Network
from recon.graph.units import Unit
from recon.reconstruct import MOST_WEIGHTS
from recon.settings import Settings
from recon.statistics.moments import blocks_of

FLOAT = 4
HALVES = 2  # second moments are kept of two halves of the images
ROUNDED = 9  # copies of one layer's second moments while it is rounded: shrunk, sorted, inverted, factored
COPIES = 4  # of the network while it is finished: balanced, equalized, to be rounded, rounded
LEARNED = 10  # values for each weight of a unit that learns: code, gradient, Adam's two, states to go back to
STARTED = 6  # of one that has too many weights to learn
SCATTERED = 1.15  # a heap does not give back in one piece what it took in parts
SURE = 0.7  # of what is expected is needed for certain: the estimate is tested to be within 30 %
MB = 1e6


class Stage(StrEnum):
    """What is long enough to be asked about."""

    SENSITIVITY = "sensitivity"
    FINALIZE = "finalize"


# What may take most, and with which options less.
_NONE = "no option lessens that: raise the limit, or take a machine that has more"
REMEDIES = {
    "samples": "take fewer --samples",
    "maps of a batch": f"{_NONE}, or a smaller --input",
    "second moments of layer inputs": _NONE,
    "errors of weights": "take fewer candidate bits (--wbits)",
    "inputs and outputs of blocks": "give a smaller --cache-memory, which keeps them in files, or fewer --samples",
    "one block that learns": "give --granularity layer",
    "copies of the network": _NONE,
}
Parts = dict[str, float]


@dataclass(frozen=True, slots=True)
class Expected:
    """`bytes` are what the process will have at its peak, `now` what it has; `most` is what takes most of what is to
    come."""

    bytes: int
    now: int
    most: str

    def __str__(self) -> str:
        taken = f"{self.now / MB:,.0f} MB are taken"
        return f"about {self.bytes / MB:,.0f} MB expected ({taken}; most of the rest: {self.most})"


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done: with `samples` of calibration, of which there are still `to_convert` from pixels, `terms`
    widths, and whether anything is `judged`."""

    samples: int
    to_convert: int
    terms: int
    judged: bool
    settings: Settings


def expected(network: Network, work: Work, stages: tuple[Stage, ...], now: int) -> Expected:
    """What a process that has `now` bytes comes to in the `stages`."""
    phases = [parts for stage in stages for parts in _PHASES[stage](network, work)]
    samples: Parts = {"samples": _input_values(network) * FLOAT * work.to_convert}
    if network.device.type != "cpu":
        phases = []
    worst: Parts = max(({**samples, **parts} for parts in phases), key=_total, default=samples)
    return Expected(now + round(SCATTERED * _total(worst)), now, max(worst, key=lambda name: worst[name]))


def require_room(need: Expected, rooms: tuple[Room, ...], workers: int = 0) -> str | None:
    """What to say where less memory is left than is expected to be needed by this process or, where there are some, by
    its `workers`; None where there is enough.

    Raises InputError where even a good part of it is not there.
    """
    for room in sorted(rooms, key=lambda room: room.bytes):
        more = need.bytes - need.now
        wanted = more if room.own or not workers else need.bytes * workers
        if room.bytes >= wanted:
            continue
        who = f"{workers} workers need" if workers and not room.own else "this needs"
        text = (
            f"{who} about {wanted / MB:,.0f} MB more memory, and {room.bytes / MB:,.0f} MB are left of {room.limit}; "
            f"most is for {need.most}: {'take fewer --workers; ' if workers else ''}{REMEDIES[need.most]}"
        )
        if room.bytes < SURE * wanted:
            raise InputError(text)
        return text
    return None


def _total(parts: Parts) -> float:
    return sum(parts.values())


def _of_sensitivity(network: Network, work: Work) -> Iterator[Parts]:
    weights = network.table.n_weights
    copy: Parts = {"copies of the network": weights * FLOAT}
    if work.judged:
        yield {"maps of a batch": JUDGED * alive_values(network.module) * FLOAT}
    moments = [_moments(network, name) for name in network.table.names]
    yield copy | {"second moments of layer inputs": (HALVES * sum(moments) + ROUNDED * max(moments)) * FLOAT}
    yield copy | _backward(network) | {"errors of weights": work.terms * weights * (FLOAT + 1)}


def _of_finalize(network: Network, work: Work) -> Iterator[Parts]:
    copies: Parts = {"copies of the network": COPIES * network.table.n_weights * FLOAT}
    yield copies | {"maps of a batch": JUDGED * alive_values(network.module) * FLOAT}
    yield copies | _backward(network)
    for unit in regroup(network, work.settings.granularity).units:
        yield copies | _of_unit(network, unit, work)


def _of_unit(network: Network, unit: Unit, work: Work) -> Parts:
    """While one unit learns: what is kept of all samples, unless it goes to files, and what a batch takes."""
    size = fast_dtype(network.device).itemsize
    nodes = list(unit.module.graph.nodes)
    (output,) = (node for node in nodes if node.op == "output")
    read = sum(values_of(node) for node in nodes if node.op == "placeholder")
    written = sum(values_of(node) for node in output.all_input_nodes)
    kept = [work.samples * values * size for values in (read, read, written, written)]
    moments = [_moments(network, name) for name in unit.layers]
    weights = sum(network.layer(name).weight.numel() for name in unit.layers)
    learning = work.settings.batch * kept_values(unit.module) * (2 * size + FLOAT)
    measuring = BATCH * (alive_values(unit.module) + read) * size
    each = LEARNED if weights <= MOST_WEIGHTS else STARTED
    rounding = (HALVES + ROUNDED) * max(moments) * FLOAT
    return {
        "inputs and outputs of blocks": sum(one for one in kept if one <= work.settings.memory_bytes / ALIVE),
        "one block that learns": max(learning + each * weights * FLOAT, measuring),
        "second moments of layer inputs": rounding,
    }


def _backward(network: Network) -> Parts:
    """A forward and a backward pass of the few samples whose outputs of all layers are alive at once."""
    each = 2 * fast_dtype(network.device).itemsize + FLOAT
    return {"maps of a batch": SENSITIVITY_BATCH * kept_values(network.module) * each}


def _moments(network: Network, name: str) -> int:
    """The values of the second moments of what a layer reads."""
    layer = network.layer(name)
    if isinstance(layer, Embedding):
        return 0
    length = layer.weight[0].numel()
    return length**2 * layer.groups // (blocks_of(length) if layer.groups == 1 else 1)


def _input_values(network: Network) -> int:
    return sum(math.prod(shape) for shape in network.table.inputs)


_PHASES: dict[Stage, Callable[[Network, Work], Iterator[Parts]]] = {
    Stage.SENSITIVITY: _of_sensitivity,
    Stage.FINALIZE: _of_finalize,
}
