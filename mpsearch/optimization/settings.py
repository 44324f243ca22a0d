"""The settings of the evolutionary search."""

from __future__ import annotations

from dataclasses import dataclass

from hwmodel.errors import InputError


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
