"""Bad input on the command line: one clear line, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import Command, refused
from safetensors.torch import save_file


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> dict[str, object]:
    """Options of a good run."""
    return {
        "--model": f"{tiny / 'net.py'}:net",
        "--data": tiny / "data",
        "--size-budget": "6kB",
        "--out": tmp_path / "out",
        "--steps": 2,
        "--population": 8,
        "--generations": 2,
    }


def flat(base: dict[str, object], **changes: object) -> list[object]:
    options = base | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return ["run", *(part for pair in options.items() for part in pair if pair[1] is not None)]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model": "mobilenet"}, ("unknown model 'mobilenet'", "did you mean", "mobilenet_v2")),
        ({"model": "nothing_like_it"}, ("unknown model",)),
        ({"model": "missing.py:net"}, ("no such file", "missing.py")),
        ({"model": "resnet18", "data": None}, ("only mobilenet_v2 is there without --data", "resnet18")),
        ({"weights": "missing.safetensors"}, ("no such weights file", "missing.safetensors")),
        ({"data": "missing"}, ("no such data: missing", "calib/")),
        ({"size_budget": "0"}, ("at least one byte", "'0'")),
        ({"size_budget": "1.5XB"}, ("MB", "'1.5XB'")),
        ({"size_budget": "-3MB"}, ("1.5MB", "'-3MB'")),
        ({"size_budget": "1kB"}, ("1,000 bytes", "smallest file", "--size-budget", "--wbits")),
        ({"wbits": "1,99,x"}, ("2,3,4,8", "'1,99,x'")),
        ({"wbits": ""}, ("2,3,4,8",)),
        ({"edges": "9"}, ("--edges", "auto", "'9'")),
        ({"fix": "2.on=8"}, ("--fix 2.on=8", "no layer '2.on'", "did you mean", "2.one")),
        ({"fix": "2.one=1"}, ("--fix 2.one=1", "2 to 8")),
        ({"fix": "2.one"}, ("--fix looks like", "'2.one'")),
        ({"fix": "2.one=8", "size_budget": 1700}, ("smallest file", "1,700", "2,130")),
        ({"tie": "2.one"}, ("--tie", "two or more")),
        ({"samples": "1"}, ("at least 16 calibration images", "1 were asked for")),
        ({"samples": "many"}, ("--samples", "integer")),
        ({"seed": "-1"}, ("--seed", "-1")),
        ({"population": "1"}, ("population", "1")),
        ({"steps": "-1"}, ("--steps", "-1")),
    ],
    ids=str,
)
def test_a_wrong_option(
    base: dict[str, object], command: Command, changes: dict[str, object], parts: tuple[str, ...]
) -> None:
    refused(command(*flat(base, **changes)), *parts)


def test_a_missing_or_unknown_option(command: Command) -> None:
    refused(command("run", "--model", "mobilenetv2"), "--size-budget")
    refused(command("run", "--size-budget", "1MB", "--sizebudget", "1MB"), "--sizebudget")
    refused(command("runn"), "runn")


def test_damaged_weights(base: dict[str, object], tiny: Path, tmp_path: Path, command: Command) -> None:
    for name in ("w.safetensors", "w.pt"):
        path = tmp_path / name
        path.write_bytes((tiny / "net.pt").read_bytes()[:300])
        refused(command(*flat(base, weights=path)), name)


def test_a_pickle_is_never_run(base: dict[str, object], tmp_path: Path, command: Command) -> None:
    class Evil:
        def __reduce__(self) -> object:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"0.weight": Evil()}, tmp_path / "evil.pt")
    refused(command(*flat(base, weights=tmp_path / "evil.pt")), "code in a checkpoint is never run")
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_architecture(base: dict[str, object], tiny: Path, command: Command) -> None:
    model = f"{tiny / 'net.py'}:wide"
    refused(command(*flat(base, model=model, weights=tiny / "net.pt")), "do not fit", "of another shape")


def test_nan_in_weights(base: dict[str, object], tiny: Path, tmp_path: Path, command: Command) -> None:
    refused(command(*flat(base, model=f"{tiny / 'net.py'}:broken")), "finite", "0.weight")
    state = torch.load(tiny / "net.pt", weights_only=True)
    state["0.bias"][0] = float("inf")
    save_file(state, tmp_path / "inf.safetensors")
    refused(command(*flat(base, weights=tmp_path / "inf.safetensors")), "finite", "0.bias")


def test_nan_in_images(base: dict[str, object], tiny: Path, command: Command) -> None:
    refused(command(*flat(base, data=f"{tiny / 'net.py'}:nan_images")), "x has NaN")


def test_empty_data(base: dict[str, object], tmp_path: Path, command: Command) -> None:
    (tmp_path / "empty" / "calib").mkdir(parents=True)
    refused(command(*flat(base, data=tmp_path / "empty")), "no images")


def test_one_calibration_image(base: dict[str, object], tmp_path: Path, command: Command) -> None:
    x = np.zeros((1, 12, 12, 3), np.uint8)
    (tmp_path / "one").mkdir()
    np.savez(tmp_path / "one" / "calib.npz", x=x)
    np.savez(tmp_path / "one" / "val.npz", x=x, y=np.zeros(1, int))
    refused(command(*flat(base, data=tmp_path / "one")), "at least 16 calibration images are needed, got 1")


def test_an_output_folder_that_is_none(base: dict[str, object], tmp_path: Path, command: Command) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    refused(command(*flat(base, out=file)), "is a file", "name another")
    assert file.read_text() == "precious"
    refused(command(*flat(base, out="/proc/out")), "cannot write to /proc/out", "--out")


def test_a_run_folder_of_another_model(base: dict[str, object], tiny: Path, tmp_path: Path, command: Command) -> None:
    assert command(*flat(base)).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    refused(command(*flat(base, model=f"{tiny / 'net.py'}:wide")), "holds a run of", "--out")
    refused(command(*flat(base, size_budget="1kB")), "smallest file")
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    front = tmp_path / "out" / "front.json"
    front.write_text("{}")
    refused(command("front", tmp_path / "out"), "not a front")
    (tmp_path / "out" / "config.toml").write_text("model = 3 =")
    refused(command("search", tmp_path / "out"), "config.toml is damaged")


def test_what_is_no_run_folder(tmp_path: Path, command: Command) -> None:
    refused(command("front", tmp_path), "no front.json", "mpsearch run")
    refused(command("finalize", tmp_path), "no run folder", "mpsearch run")
    refused(command("export", tmp_path), "finalize")


def test_a_wrong_pick_or_format(base: dict[str, object], tmp_path: Path, command: Command) -> None:
    assert command(*flat(base)).code == 0
    for pick in ("best", "100000", "all:0", "-1"):
        refused(command("finalize", tmp_path / "out", "--pick", pick), "--pick takes", pick)
    refused(command("export", tmp_path / "out", "--format", "xml"), "json, csv", "xml")
    refused(command("export", tmp_path / "out", "--out", "/proc/none/x"), "cannot write", "--out")


def test_what_cannot_be_looked_at(base: dict[str, object], tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    assert command(*flat(base)).code == 0
    refused(command("why", out, "budgt"), "did you mean budget")
    refused(command("why", out, "100000"), "--pick takes")
    (tmp_path / "bits.json").write_text('{"0": "W8A32"}')
    refused(command("why", out, tmp_path / "bits.json"), "another network")
    (tmp_path / "bits.json").write_text("no JSON")
    refused(command("why", out, tmp_path / "bits.json"), "no bit assignment")
    refused(command("compare", out), "two or more")
    refused(command("compare", out, tmp_path), "no front.json")
    refused(command("compare", out, out, "--plot", tmp_path / "x.jpg"), ".png")
    (out / "costs.json").write_text("{}")
    refused(command("front", out), "costs.json is damaged")


def test_debug_shows_where(base: dict[str, object], command: Command) -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        command(*flat(base, size_budget="0"), "--debug")
