"""The sensitivity table on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hwmodel import InputError, Precision
from mpsearch.sensitivity_table import SensitivityTable


def save_table(path: Path, table: SensitivityTable) -> None:
    """Writes a sensitivity table as safetensors, in one step."""
    about = {
        "layers": table.layers,
        "precisions": [str(precision) for precision in table.precisions],
        "samples": table.samples,
        "seed": table.seed,
        "metric": table.metric,
        "fingerprint": table.fingerprint,
    }
    metadata = {"table": json.dumps(about)}  # one field: safetensors writes several in another order each time
    temporary = path.with_suffix(".tmp")
    arrays = {"intra": table.intra, "inter": table.inter, "diagonal": table.diagonal}
    # safetensors writes the memory behind an array, whatever its strides.
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, metadata)
    os.replace(temporary, path)


def load_table(path: Path) -> SensitivityTable:
    """Reads a sensitivity table. Raises InputError where the file is missing or damaged."""
    if not path.is_file():
        raise InputError(f"{path} is missing: make it with `mpsearch sensitivity`")
    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["table"])
            return SensitivityTable(
                tuple(about["layers"]),
                tuple(Precision.parse(text) for text in about["precisions"]),
                intra=file.get_tensor("intra"),
                inter=file.get_tensor("inter"),
                diagonal=file.get_tensor("diagonal"),
                samples=int(about["samples"]),
                seed=int(about["seed"]),
                metric=about["metric"],
                fingerprint=about["fingerprint"],
            )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it to measure again") from None
