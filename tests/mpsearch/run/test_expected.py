"""What memory a run is expected to need, against closed forms, against limits, and against what it then takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn

from hwmodel import InputError
from mpsearch.run.expected import MB, SCATTERED, Expected, Stage, Work, expected, require_room
from mpsearch.run.memory import Room, _by_cgroup, rooms
from recon.graph.footprint import alive_values, kept_values
from recon.graph.network import Network, capture
from recon.settings import Settings


class Skip(nn.Module):
    """3 × 8 × 8 → a (4 × 8 × 8) → b (4 × 8 × 8) → a + b → means → 2."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.head((y + self.b(y)).mean((2, 3)))


@pytest.fixture(scope="module")
def skip() -> Network:
    return capture(Skip().eval(), torch.zeros(3, 3, 8, 8))


def test_values_of_a_graph_are_those_that_are_alive_together(skip: Network) -> None:
    assert kept_values(skip.module) == 3 * 4 * 64 + 4 + 2
    assert alive_values(skip.module) == 3 * 4 * 64  # both summands and their sum


def test_views_take_nothing() -> None:
    flat = capture(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval(), torch.zeros(3, 3, 2, 2))
    assert kept_values(flat.module) == alive_values(flat.module) == 5


def work(samples: int = 100, terms: int = 2, memory: int = 2**31, convert: int = 0) -> Work:
    return Work(samples, convert, terms, True, Settings(memory_bytes=memory))


def test_more_is_expected_for_more_samples_and_widths_and_less_where_files_help(skip: Network) -> None:
    def need(stage: Stage, what: Work) -> int:
        return expected(skip, what, (stage,), 0).bytes

    assert need(Stage.FINALIZE, work(100_000)) > need(Stage.FINALIZE, work(1000))
    assert need(Stage.FINALIZE, work(100_000, memory=0)) == need(Stage.FINALIZE, work(1000, memory=0))
    converted = need(Stage.FINALIZE, work(1000, convert=1000)) - need(Stage.FINALIZE, work(1000))
    assert converted == pytest.approx(SCATTERED * 1000 * 3 * 64 * 4, abs=2)
    assert need(Stage.SENSITIVITY, work(terms=5000)) > need(Stage.SENSITIVITY, work(terms=2))
    both = expected(skip, work(), (Stage.SENSITIVITY, Stage.FINALIZE), 7).bytes
    assert both == 7 + max(need(Stage.SENSITIVITY, work()), need(Stage.FINALIZE, work()))


def test_what_is_not_there_is_refused_and_what_may_be_is_noted() -> None:
    need = Expected(round(1500 * MB), round(500 * MB), "samples")
    assert require_room(need, (Room(round(1000 * MB), "x"),)) is None
    said = require_room(need, (Room(round(900 * MB), "x"), Room(10**15, "y")))
    assert said is not None
    assert "1,000 MB more memory, and 900 MB are left of x" in said
    with pytest.raises(InputError, match=r"600 MB are left of x; most is for samples: take fewer --samples") as refused:
        require_room(need, (Room(10**15, "y"), Room(round(600 * MB), "x")))
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match=r"4 workers need about 6,000 MB more .*fewer --workers"):
        require_room(need, (Room(round(3000 * MB), "x"),), workers=4)
    assert require_room(need, (Room(round(1000 * MB), "ulimit", own=True),), workers=4) is None


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_cgroups_are_read(version: int, tmp_path: Path) -> None:
    membership, mounted = tmp_path / "cgroup", tmp_path / "mounted"
    membership.write_text("7:cpu:/\n4:memory:/a/b\n" if version == 1 else "0::/a/b\n")
    root = mounted / "memory" if version == 1 else mounted
    limit, taken, files = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if version == 1
        else ("memory.max", "memory.current", "inactive_file")
    )
    for folder, most in ((root / "a" / "b", "max" if version == 2 else str(2**63 - 4096)), (root / "a", "1000000")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(f"{most}\n")
        (folder / taken).write_text("400000\n")
        (folder / "memory.stat").write_text(f"cache 5\n{files} 150000\n")
    (room,) = _by_cgroup(membership, mounted)
    assert room.bytes == 750_000
    assert str(root / "a") in room.limit


def test_the_machine_has_room_and_a_file_that_is_not_there_is_no_limit(tmp_path: Path) -> None:
    assert list(_by_cgroup(tmp_path / "none", tmp_path)) == []
    assert 0 < rooms()[0].bytes <= psutil.virtual_memory().total + psutil.swap_memory().total


LIMITED = """
import resource, sys
soft = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
sys.argv = ["mpsearch", *sys.argv[2:]]
from mpsearch.cli.main import main
main()
"""


def test_an_address_space_without_room_for_the_libraries_is_one_line() -> None:
    pytest.importorskip("resource")
    line = [sys.executable, "-c", LIMITED, str(900_000_000), "layers"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("mpsearch: ulimit -v allows 900,000,000 bytes")


# The peak, from where nothing else adds to it.
WATCHED = """
import sys
from mpsearch.cli.main import main
from mpsearch.run.memory import peak_rss_bytes
try:
    main()
finally:
    print("peak", peak_rss_bytes(), file=sys.stderr)
"""
RESNET = """
import torch, torchvision
def net():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()
"""


@pytest.mark.slow
@pytest.mark.parametrize("network", ["embedded", "resnet18", "mobilenet_v2"])
def test_the_peak_is_what_was_expected_within_30_percent(network: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "resnet.py").write_text(RESNET)
    images = ("--data", str(data / "imagenet"), "--input", "3x224x224", "--val-samples", "64")
    budget = ("--size-budget", "12MB", "--wbits", "8", "--population", "8", "--generations", "1")
    commands: dict[str, tuple[str, ...]] = {
        "embedded": ("run", "--samples", "64", "--val-samples", "64", "--steps", "2", *budget),
        "resnet18": ("sensitivity", "--model", f"{tmp_path / 'resnet.py'}:net", "--samples", "32", *images, *budget),
        "mobilenet_v2": (
            "reconstruct", "--bits", "W8", "--model", "mobilenet_v2", "--samples", "64", "--steps", "2", *images,
            "--weights", str(data / "models" / "mobilenet_v2_imagenet.safetensors"),
        ),
    }  # fmt: skip
    line = (sys.executable, "-c", WATCHED, *commands[network], "--out", str(tmp_path / "run"))
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    foretold = re.search(r"memory: about ([\d,]+) MB expected", done.stderr)
    peak = re.search(r"^peak (\d+)$", done.stderr, re.MULTILINE)
    assert foretold is not None
    assert peak is not None
    ratio = int(foretold[1].replace(",", "")) * MB / int(peak[1])
    assert 0.7 < ratio < 1.3, f"{network}: {ratio:.2f} of the peak {int(peak[1]):,}"
