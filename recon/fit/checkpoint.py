"""Finished units on disk: an interrupted reconstruction continues where it was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hwmodel.files import write_whole
from recon.fit.report import BlockReport
from recon.graph.layers import Layer
from recon.quantizers.insert import quantizers_of
from recon.quantizers.learned import bias_of, learn_rounding, rounding_of
from recon.quantizers.rounding import StraightThrough
from recon.quantizers.weights import Grid

PARTS = ("code", "log_scale", "scale", "zero_point", "bias")
FORM, INPUT = "form", "input"


class Progress:
    """A safetensors file with the trained state of the units done so far; `key` names the work it belongs to.

    A file with another key, or a damaged one, counts as no progress.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        self._tensors: dict[str, Tensor] = {}
        self._reports: dict[str, BlockReport] = {}
        if path.is_file():
            self._read()

    def _read(self) -> None:
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self.key:
                    return
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return
        reports = [BlockReport(**{**entry, "bits": tuple(entry["bits"])}) for entry in json.loads(metadata["reports"])]
        self._reports = {report.block: report for report in reports}

    def restore(self, unit: str, layers: dict[str, Layer]) -> BlockReport | None:
        """Puts a finished unit's roundings and biases on its layers; None where the unit is not finished."""
        report = self._reports.get(unit)
        if report is None:
            return None
        for name, layer in layers.items():
            where = layer.weight.device
            code, log_scale, scale, zero_point, bias = (self._tensors[f"{name}:{part}"].to(where) for part in PARTS)
            bits, rate = self._tensors[f"{name}:{FORM}"].tolist()
            rounding = StraightThrough(code, Grid(int(bits), scale, zero_point, rate))
            rounding.log_scale.data = log_scale
            learn_rounding(layer, rounding)
            bias_of(layer).data = bias
            for quantizer in quantizers_of([layer]):
                log_scale, zero_point, *halvings = self._tensors[f"{name}:{INPUT}"].tolist()
                quantizer.halvings = tuple(map(int, halvings))
                quantizer.set_step_size(log_scale, zero_point)
        return report

    def save(self, report: BlockReport, layers: dict[str, Layer]) -> None:
        """Adds a finished unit; the file is replaced in one step."""
        for name, layer in layers.items():
            rounding = rounding_of(layer)
            values = (rounding.code, rounding.log_scale, rounding.grid.scale, rounding.grid.zero_point, bias_of(layer))
            self._tensors[f"{name}:{FORM}"] = torch.tensor([rounding.grid.bits, rounding.grid.rate])
            for quantizer in quantizers_of([layer]):
                self._tensors[f"{name}:{INPUT}"] = torch.tensor(
                    [float(quantizer.log_scale.detach()), quantizer.zero_point, *quantizer.halvings]
                )
            for part, value in zip(PARTS, values, strict=True):
                self._tensors[f"{name}:{part}"] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        self._reports[report.block] = report
        self._write()

    def _write(self) -> None:
        reports = json.dumps([asdict(entry) for entry in self._reports.values()])
        write_whole(self.path, save(self._tensors, {"key": self.key, "reports": reports}))

    def discard(self) -> None:
        """Removes the file: the work is done."""
        self.path.unlink(missing_ok=True)
