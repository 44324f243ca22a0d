"""The sensitivity cache on disk: the table that the search reads, and the scores that it can be grown from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from hwmodel import FLOAT_BITS, InputError, Precision
from hwmodel.files import write_whole
from hwmodel.json_text import parse_json
from mpsearch.files.reading import reading
from mpsearch.sensitivity.scores import Rounded, RoundedWeight, Scores
from mpsearch.sensitivity.table import SensitivityTable
from recon.graph.network import Network
from recon.quantizers.channels import split_halvings
from recon.quantizers.inputs import InputGrid
from recon.quantizers.weights import Grid, QuantizedWeight

Arrays = dict[str, NDArray[np.generic]]
Read = TypeVar("Read")


def save_cache(path: Path, table: SensitivityTable, scores: Scores) -> None:
    """Writes a sensitivity table and the scores that it was made of as safetensors, in one step."""
    about = {
        "layers": table.layers,
        "precisions": [str(precision) for precision in table.precisions],
        "samples": table.samples,
        "seed": table.seed,
        "metric": table.metric,
        "fingerprint": table.fingerprint,
        "key": scores.key,
        "images": scores.images,
        "terms": [str(term) for term in scores.terms],
        "alone": scores.alone,
    }
    arrays: Arrays = {name: getattr(table, name) for name in ("intra", "inter", "diagonal")}
    if table.coded_bytes is not None:
        arrays["coded_bytes"] = table.coded_bytes
    arrays |= {"score": scores.score, "square": scores.square}
    for term, rounded in scores.rounded.items():
        arrays |= {f"{term}.{part}": array for part, array in _parts(rounded).items()}
    metadata = {"table": json.dumps(about)}  # one field: safetensors writes several in another order each time
    # safetensors writes the memory behind an array, whatever its strides.
    write_whole(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata))


def load_table(path: Path) -> SensitivityTable:
    """Reads a sensitivity table. Raises InputError where the file is missing or damaged."""

    def read(about: dict[str, Any], tensor: Callable[[str], NDArray[Any]]) -> SensitivityTable:
        return SensitivityTable(
            tuple(about["layers"]),
            tuple(map(Precision.parse, about["precisions"])),
            intra=tensor("intra"),
            inter=tensor("inter"),
            diagonal=tensor("diagonal"),
            samples=int(about["samples"]),
            seed=int(about["seed"]),
            metric=about["metric"],
            fingerprint=about["fingerprint"],
            coded_bytes=tensor("coded_bytes"),
        )

    return _read(path, read)


def load_scores(path: Path, network: Network) -> Scores:
    """Reads the scores of a network. Raises InputError where the file is missing or damaged, or of other layers."""

    def read(about: dict[str, Any], tensor: Callable[[str], NDArray[Any]]) -> Scores:
        if tuple(about["layers"]) != network.table.names:
            raise InputError(f"{path} is of another network; delete it to measure again")
        rounded = {term: _rounded(network, term, tensor) for term in map(Precision.parse, about["terms"])}
        layers, images = tuple(about["layers"]), tuple(about["images"])
        alone = tuple(about.get("alone", ()))
        return Scores(about["key"], layers, images, rounded, tensor("score"), tensor("square"), alone)

    return _read(path, read)


def _read(path: Path, read: Callable[[dict[str, Any], Callable[[str], NDArray[Any]]], Read]) -> Read:
    if not path.is_file():
        raise InputError(f"{path} is missing: make it with `mpsearch sensitivity`")
    with reading(path, "delete it to measure again"):
        try:
            with safe_open(path, "np") as file:
                return read(parse_json((file.metadata() or {})["table"]), file.get_tensor)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(error) from None


def _parts(rounded: Rounded) -> Arrays:
    """All layers' roundings at one width, one after another."""
    weights = [found for found in rounded.values() if isinstance(found, RoundedWeight)]
    inputs = [found for found in rounded.values() if isinstance(found, InputGrid)]
    if inputs:
        scales, zeros = [grid.scale for grid in inputs], [grid.zero_point for grid in inputs]
        halvings = [times for grid in inputs for times in grid.halvings]
        return {
            "scales": np.array(scales),
            "zero_points": np.array(zeros, np.uint8),
            "halvings": np.array(halvings, np.uint8),
        }
    tensors = {
        "codes": [found.weight.codes for found in weights],
        "scales": [found.weight.grid.scale for found in weights],
        "zero_points": [found.weight.grid.zero_point for found in weights],
        "biases": [found.bias for found in weights],
        "coded_bytes": [torch.tensor([found.coded_bytes], dtype=torch.float64) for found in weights],
    }
    return {name: torch.cat([tensor.flatten() for tensor in row]).cpu().numpy() for name, row in tensors.items()}


def _rounded(network: Network, term: Precision, tensor: Callable[[str], NDArray[Any]]) -> Rounded:
    """The inverse of `_parts`."""
    table = network.table
    scales, zeros = tensor(f"{term}.scales"), tensor(f"{term}.zero_points")
    if term.a != FLOAT_BITS:
        reading = [layer for layer in table if layer.kind != "embedding"]
        halvings = split_halvings(reading, tensor(f"{term}.halvings"))
        grids = zip(reading, scales.tolist(), zeros.tolist(), halvings, strict=True)
        return {layer.name: InputGrid(term.a, *grid) for layer, *grid in grids}

    def split(values: NDArray[Any], sizes: list[int]) -> tuple[Tensor, ...]:
        return torch.split(torch.from_numpy(values), sizes)

    channels = [layer.out_channels for layer in table]
    codes = split(tensor(f"{term}.codes"), [layer.n_weights for layer in table])
    parts = zip(
        table.names,
        codes,
        split(scales, channels),
        split(zeros, channels),
        split(tensor(f"{term}.biases"), [layer.n_biases for layer in table]),
        tensor(f"{term}.coded_bytes").tolist(),
        strict=True,
    )
    return {
        name: RoundedWeight(
            QuantizedWeight(Grid(term.w, scale, zero, term.rate), code.view(network.layer(name).weight.shape)),
            bias,
            size,
        )
        for name, code, scale, zero, bias, size in parts
    }
