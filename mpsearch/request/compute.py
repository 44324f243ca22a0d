"""Where it is computed, and by how many processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from hwmodel import InputError
from mpsearch.request.flags import PLACE, Flag
from mpsearch.request.parse import parse_compute, parse_threads, parse_workers

_COMPUTE = "cpu, cuda, or cuda:1 for the second GPU (default: cuda where there is one)."
_THREADS = "Threads of torch, BLAS and our own pools; 0: as many as torch finds right."
_WORKERS = "Processes that share points or batches; 0: this one. --threads are those of each (default: a share)."
_SCHEDULER = "Where the Dask scheduler or the Ray head listens: tcp://10.0.0.1:8786."


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeOptions:
    """Where it is computed: `compute` is cpu, cuda or cuda:1, the GPU where there is one if None; `threads` is how many
    torch, BLAS and our own pools take, as many as torch finds right if 0. No result depends on them but by rounding,
    and no file keeps them."""

    compute: Annotated[str | None, Flag(PLACE, _COMPUTE, parse_compute, metavar="DEVICE")] = None
    threads: Annotated[int, Flag(PLACE, _THREADS, parse_threads, "0", metavar="COUNT")] = 0

    def __post_init__(self) -> None:
        if self.compute is not None:
            parse_compute(self.compute)
        parse_threads(str(self.threads))

    @classmethod
    def from_flags(cls, given: Mapping[str, Any]) -> Self:
        """The record of the fields that were `given` on the command line, defaults for the others."""
        return cls(**given)


HERE = ComputeOptions()
BACKENDS = ("loky", "dask", "ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadOptions(ComputeOptions):
    """By how many processes, and where: `workers` of this machine (joblib's loky), or those of a Dask or Ray cluster
    whose `scheduler` is at an address; a cluster of this machine without one. `threads` are those of each worker."""

    workers: Annotated[int, Flag(PLACE, _WORKERS, parse_workers, "0", metavar="COUNT")] = 0
    backend: Annotated[str, Flag(PLACE, "What runs the workers: loky, dask or ray.", metavar="ENGINE")] = "loky"
    scheduler: Annotated[str | None, Flag(PLACE, _SCHEDULER, metavar="ADDRESS")] = None

    def __post_init__(self) -> None:
        parse_workers(str(self.workers))
        if self.backend not in BACKENDS:
            raise InputError(f"--backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.scheduler is not None and self.backend == "loky":
            raise InputError("--scheduler is the address of a cluster; say which with --backend dask or ray")
        ComputeOptions.__post_init__(self)

    @property
    def spread(self) -> bool:
        """More than this process computes."""
        return self.workers > 0 or self.backend != "loky"


ALONE = SpreadOptions()
