"""A trained-looking network of seconds, in files as a user would give them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import Command, Result

from mpsearch.cli.main import main

FACTORY = """
import torch
from torch import Tensor, nn

class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.two(torch.relu(self.norm(self.one(x)))))

def net(classes=5, width=8):
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes)]
    model = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), Residual(width), Residual(width), *head)
    with torch.no_grad():
        model[-1].weight *= 10
    return model.eval()

def wide():
    return net(width=12)

def broken():
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    return model

def nan_images():
    import numpy as np
    return np.full((20, 12, 12, 3), np.nan, np.float32), None, None
"""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `mpsearch ARGUMENTS…` in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["mpsearch", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `net.py` (a factory), `net.json`, `net.pt` (weights), and `data/` of 96 + 200 labelled images."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "net.py").write_text(FACTORY)
    (folder / "net.json").write_text('{"input_size": [3, 12, 12], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}')
    space: dict[str, Callable[..., torch.nn.Module]] = {}
    exec(compile(FACTORY, "net.py", "exec"), space)
    model = space["net"]()
    torch.save(model.state_dict(), folder / "net.pt")
    rng = np.random.default_rng(0)
    (folder / "data").mkdir()
    for name, count in (("calib", 96), ("val", 200)):
        coarse = rng.integers(0, 256, (count, 4, 4, 3))
        x = np.repeat(np.repeat(coarse, 3, 1), 3, 2).astype(np.uint8)
        with torch.inference_mode():
            y = model((torch.from_numpy(x).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25).argmax(1).numpy()
        np.savez(folder / "data" / f"{name}.npz", x=x, y=y)
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with real images and weights. Skips, saying why, where it is absent."""
    folder = Path(os.environ.get("MPSEARCH_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if not (folder / "imagenet").is_dir():
        pytest.skip(f"no real data in {folder}; set MPSEARCH_DATA to a folder that has it")
    return folder
