"""Bit assignments in other people's formats."""

from __future__ import annotations

import csv
import io
import json
from typing import Literal

from hwmodel import BitConfig, LayerTable

Format = Literal["json", "csv"]


def export(table: LayerTable, configs: dict[str, BitConfig], form: Format) -> str:
    """Finished configurations by name as JSON, or as CSV with a line per configuration and layer."""
    if form == "json":
        return json.dumps({name: config.to_json() for name, config in configs.items()}, indent=1) + "\n"
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["config", "layer", "kind", "weights", "weight_bits", "activation_bits"])
    for name, config in configs.items():
        for layer in table:
            precision = config[layer.name]
            writer.writerow([name, layer.name, layer.kind, layer.n_weights, f"{precision.stored:g}", precision.a])
    return stream.getvalue()
