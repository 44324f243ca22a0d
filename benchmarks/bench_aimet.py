"""What AIMET makes of exported models: KL and metrics of its simulation beside the packed file's.

    pip install aimet-onnx          # in an environment of its own: it brings bokeh, pandas and more
    python benchmarks/bench_aimet.py RUN [RUN…]

Every RUN is a folder with one finished model, or with one at its budget. Writes benchmarks/results/bench_aimet.json,
where rows of other runs stay.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from machine import machine
from torch import Tensor, nn

from mpsearch.deploy.export import Choices, export_model
from mpsearch.deploy.finished import finished_model
from mpsearch.export.encodings import VERSIONS
from mpsearch.run.summary import versions
from mpsearch.show.console import Console

RESULTS = Path(__file__).resolve().parent / "results" / "bench_aimet.json"


class Simulated(nn.Module):
    """AIMET's simulation of an exported model as a module of one input and one output."""

    def __init__(self, model: Path, encodings: Path, sample: Tensor) -> None:
        import onnx
        from aimet_onnx.quantsim import QuantizationSimModel, load_encodings_to_sim

        super().__init__()
        loaded = onnx.load(model)
        self.input = loaded.graph.input[0].name
        self.sim = QuantizationSimModel(
            loaded,
            param_type="int8",
            activation_type="int8",
            dummy_input={self.input: sample.numpy()},
            providers=["CPUExecutionProvider"],
        )
        # Not strict: AIMET expects symmetric weights, a setting that the encodings overrule.
        load_encodings_to_sim(self.sim, str(encodings), strict=False)

    def forward(self, x: Tensor) -> Tensor:
        (y,) = self.sim.session.run(None, {self.input: x.contiguous().numpy()})
        return torch.from_numpy(y)


def measured(folder: Path) -> dict[str, Any]:
    """One model: what the packed file measures, and what AIMET's simulation of either version does."""
    model = finished_model(folder, None, Console())
    record = model.record
    with TemporaryDirectory() as place:
        path = Path(place) / "model.onnx"
        export_model(model, "aimet", path, Choices(), force=False)
        sample = model.network.leaves(model.loaded.calibration)[0][:1].contiguous()
        simulated = {
            name: model.loaded.judge.measure(Simulated(path, path.with_name(f"model-{name}.encodings"), sample))
            for name in VERSIONS
        }
    widths = {str(bits) for bits in record["config"].values()}
    packed = record["metrics"]["finished"]
    return {
        "run": folder.name,
        "precisions": sorted(widths),
        "size_bytes": record["size_bytes"],
        "samples": record["validation_samples"],
        "float": record["metrics"]["float"],
        "packed": packed,
        "aimet": simulated,
    }


def main() -> None:
    """Prints a table and writes the results."""
    rows = [measured(Path(folder)) for folder in sys.argv[1:]]
    print(f"{'run':14} {'samples':>7}  {'packed':>20}  {'AIMET 1.0.0':>20}  {'AIMET 2.0.0':>20}")
    for row in rows:
        shown = [row["packed"], *(row["aimet"][name] for name in VERSIONS)]
        cells = "  ".join(f"{one['top1']:7.2f} % KL {one['kl']:7.4f}" for one in shown)
        print(f"{row['run']:14} {row['samples']:7}  {cells}")
    old = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows += [row for row in old if row["run"] not in {new["run"] for new in rows}]
    made = {"machine": machine(), "versions": {**versions(), "aimet-onnx": version("aimet-onnx")}, "rows": rows}
    RESULTS.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
