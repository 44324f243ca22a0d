"""How long 64 points of ResNet-50 would take on more and more workers: projected from one point that is measured.

    python benchmarks/scale.py --data ../shared/data/imagenet [--write]

One point (W4, random weights, one thread) is finished with 16 and with 48 calibration images; what grows with them is
extended to 512, and the seconds of measuring an image to 2,000. Bytes are those that are really sent for so many
images, and those of the finished file. Measured is one process alone: that workers do not wait for each other's memory
and disk is assumed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import machine

from hwmodel import Precision
from mpsearch.files.folder import RunFolder
from mpsearch.request.assignment import uniform
from mpsearch.request.options import FinishOptions
from mpsearch.run.finalize import finalize_step
from mpsearch.run.loaded import Loaded
from mpsearch.run.sent import sent
from mpsearch.run.summary import versions
from mpsearch.show.console import Console

RESULTS = Path(__file__).resolve().parent / "results" / "scale.json"
FEW, SOME, ALL, JUDGED = 16, 48, 512, 2000
MEASURED = 32  # validation images
POINTS, WORKERS = 64, (1, 8, 64)
RATE = 125e6  # bytes a second: what a scheduler on one gigabit connection passes on
NET = """
import torch, torchvision
def net():
    torch.manual_seed(0)
    return torchvision.models.{name}(weights=None).eval()
"""


def measured(name: str, data: Path, samples: int, folder: Path) -> dict[str, Any]:
    """Seconds and bytes of one point."""
    (folder / "net.py").write_text(NET.format(name=name))
    model, shape = f"{folder / 'net.py'}:net", (3, 224, 224)
    options = FinishOptions(
        model=model, data=str(data), input_size=shape, samples=samples, val_samples=MEASURED, threads=1
    )
    place = RunFolder(folder / str(samples))
    place.file("chosen").mkdir(parents=True)
    loaded = Loaded(options, place, Console())
    _ = loaded.data
    began = time.perf_counter()
    network = loaded.network
    captured = time.perf_counter() - began
    _ = loaded.judge
    began = time.perf_counter()
    record = finalize_step(loaded, uniform(network.table.names, Precision(4), (), Precision(8)), "W4")
    whole = time.perf_counter() - began
    return {
        "samples": samples,
        "seconds_capture": captured,
        "seconds_reconstruct": whole - record["seconds_evaluate"],
        "seconds_evaluate_an_image": record["seconds_evaluate"] / MEASURED,
        "bytes_sent": len(sent(loaded, 1, loaded.data)),
        "bytes_back": record["size_bytes"],
    }


def projected(few: dict[str, Any], some: dict[str, Any]) -> dict[str, Any]:
    """A point with all images, and the table over workers."""
    grows = max(0.0, (some["seconds_reconstruct"] - few["seconds_reconstruct"]) / (SOME - FEW))
    seconds = some["seconds_reconstruct"] + grows * (ALL - SOME) + some["seconds_evaluate_an_image"] * JUDGED
    image = (some["bytes_sent"] - few["bytes_sent"]) / (SOME - FEW)
    size = few["bytes_sent"] + image * (ALL - FEW + JUDGED - MEASURED)
    rows = []
    for workers in WORKERS:
        compute = some["seconds_capture"] + math.ceil(POINTS / workers) * seconds
        travel = (workers * size + POINTS * some["bytes_back"]) / RATE
        whole = compute + travel
        rows.append({"workers": workers, "compute_s": compute, "travel_s": travel, "whole_s": whole})
    for row in rows:
        row["efficiency_percent"] = 100 * rows[0]["whole_s"] / row["whole_s"] / row["workers"]
    return {"point_s": seconds, "bytes_sent": size, "bytes_back": some["bytes_back"], "rows": rows}


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/scale.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mpsearch-scale-") as temporary:
        few, some = (measured(given.model, given.data, count, Path(temporary)) for count in (FEW, SOME))
    found = projected(few, some)
    print(f"a point: {found['point_s']:.0f} s, {found['bytes_sent'] / 1e6:.0f} MB sent to each worker")
    print(f"{'workers':>8}{'computing':>12}{'travelling':>12}{'in all':>10}{'efficiency':>12}")
    for row in found["rows"]:
        print(
            f"{row['workers']:>8}{row['compute_s']:>10.0f} s{row['travel_s']:>10.0f} s{row['whole_s']:>8.0f} s"
            f"{row['efficiency_percent']:>10.0f} %"
        )
    if given.write:
        data = {"machine": machine(), "versions": versions(), "model": given.model, "measured": [few, some], **found}
        RESULTS.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
