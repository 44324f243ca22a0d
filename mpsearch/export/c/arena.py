"""Where tensors lie in one block of memory, so that what is alive at a time does not overlap."""

from __future__ import annotations

from collections.abc import Sequence

from mpsearch.export.plan.records import Plan


def bytes_of(plan: Plan, name: str) -> int:
    """Bytes of an int8 tensor of one sample."""
    count = 1
    for size in plan.tensors[name].shape[1:]:
        count *= size
    return count


def arrange(plan: Plan) -> tuple[dict[str, int], int]:
    """The place of every tensor, and the bytes of all: first fit, in the order in which they are written."""
    last = {name: k for k, op in enumerate(plan.ops) for name in op.inputs}
    last |= dict.fromkeys(plan.outputs, len(plan.ops))
    places: dict[str, int] = {}
    alive: list[str] = []
    most = 0

    def put(name: str) -> None:
        nonlocal most
        places[name] = _first_gap([(places[other], bytes_of(plan, other)) for other in alive], bytes_of(plan, name))
        alive.append(name)
        most = max(most, places[name] + bytes_of(plan, name))

    for name in plan.inputs:
        put(name)
    for k, op in enumerate(plan.ops):
        put(op.output)
        alive[:] = [name for name in alive if last.get(name, -1) > k]
    return places, most


def _first_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    at = 0
    for start, length in sorted(taken):
        if at + size <= start:
            break
        at = max(at, start + length)
    return at
