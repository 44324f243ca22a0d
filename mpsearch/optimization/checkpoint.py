"""The state of a search on disk: a search that was killed goes on from it, bit for bit."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError
from hwmodel.files import write_whole
from hwmodel.json_text import parse_json
from mpsearch.optimization.problem import BitProblem, Genomes
from mpsearch.optimization.settings import SearchSettings


@dataclass(slots=True)
class State:
    """All that the next generation depends on."""

    genomes: Genomes
    rank: NDArray[np.float64]
    crowding: NDArray[np.float64]
    archive: Genomes
    objectives: NDArray[np.float64]  # of the archive
    rng: dict[str, Any]
    hypervolume: list[float]
    evaluations: int


def search_key(problem: BitProblem, settings: SearchSettings) -> str:
    """Of everything that the course of a search depends on."""
    terms = json.dumps([asdict(settings), problem.choices, problem.objectives, problem.budgets])
    digest = hashlib.sha256(terms.encode())
    for array in (problem.linear, problem.pair, problem.costs, problem.fixed):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save(path: Path, state: State, key: str) -> None:
    notes = {"key": key, "rng": state.rng, "hypervolume": state.hypervolume, "evaluations": state.evaluations}
    archive = io.BytesIO()
    np.savez(
        archive,
        genomes=state.genomes,
        rank=state.rank,
        crowding=state.crowding,
        archive=state.archive,
        notes=np.array(json.dumps(notes)),
    )
    write_whole(path, archive.getvalue())


def load(path: Path, problem: BitProblem, key: str) -> State:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            notes = parse_json(str(data["notes"]))
            state = State(
                data["genomes"],
                data["rank"],
                data["crowding"],
                data["archive"],
                problem.evaluate(data["archive"]),
                notes["rng"],
                notes["hypervolume"],
                notes["evaluations"],
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no search checkpoint ({error}); delete it to search anew") from None
    if notes["key"] != key:
        raise InputError(f"{path} is of another search (the problem or the settings differ); delete it to search anew")
    return state
