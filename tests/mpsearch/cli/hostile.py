"""Bad input of every kind: each case prepares files in a folder of its own and says what is called with them."""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file


@dataclass(frozen=True, slots=True)
class Place:
    """Where a case is prepared: `here`, a folder of its own; a finished `run`; `tiny`, the network and data."""

    here: Path
    run: Path
    tiny: Path

    def file(self, name: str, data: bytes) -> Path:
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def model(self) -> list[object]:
        return ["--model", f"{self.tiny / 'net.py'}:net"]

    def data(self) -> list[object]:
        return ["--data", self.tiny / "data"]

    def start(self, *more: object) -> list[object]:
        """A run that only `more` is wrong with."""
        return ["run", *self.model(), *self.data(), "--size-budget", "6kB", "--out", self.here / "out", *more]


Case = tuple[str, Callable[[Place], list[object]], str]  # its name, what is called, and a part of the answer

GARBAGE = {
    "empty": b"", "zeros": bytes(100), "text": b"hello", "null": b"null", "a list": b"[]", "a number": b"3",
    "deep brackets": b"[" * 100_000, "not UTF-8": b"\xff\xfe\xfd", "NaN": b"NaN", "a huge number": b"1" + b"0" * 400,
}  # fmt: skip


def options() -> Iterator[Case]:
    """Values that options do not take."""
    wrong: dict[str, tuple[object, ...]] = {
        "--size-budget": ("0", "-1", "1.5XB", "MB", "", "nan", "1e999MB", "inf", "1 2", "١MB", "1kB", "0.5"),
        "--latency-budget": ("3", "3parsecs", "-3ms", "nanms"),
        "--energy-budget": ("1", "1cal", "0J"),
        "--bops-budget": ("none", "-5", "1e400"),
        "--mean-bits": ("0", "-1", "x", "nan"),
        "--wbits": ("", "1", "9", "2,,3", "2;3", "x", "2,2.5", "99999999999999999999"),
        "--abits": ("1", "33", "x", "-8"),
        "--edges": ("7", "none", ""),
        "--fix": ("0", "0=", "=8", "0=99", "nolayer=8", "0!=", "0=8=8"),
        "--tie": ("0", "0,nolayer", ","),
        "--seed": ("-1", "x", "1.5", "1e3"),
        "--samples": ("0", "-5", "x", "3"),
        "--val-samples": ("-1", "x"),
        "--population": ("0", "1", "-4", "x"),
        "--generations": ("0", "-1", "x"),
        "--steps": ("-1", "x"),
        "--granularity": ("model", ""),
        "--threads": ("-1", "x", "99999", "1.5"),
        "--compute": ("tpu", "cuda:x", "cuda:99", ""),
        "--cache-memory": ("-1", "x", "1XB"),
        "--input": ("3x", "0x3x3", "axb", "-3x12x12", "3x12x12x12x12x12x12x12x12"),
        "--objectives": ("speed", "size,size", "", "latency"),
        "--task": ("classify", "missing.py:task", ""),
        "--device": ("no-such-device", "missing.toml", "missing.csv"),
        "--data": ("missing", "missing.npz", "missing.py:data", "/dev/null"),
        "--weights": ("missing.pt", "/dev/null", "/proc/self/mem"),
        "--weights-key": ("ema",),
        "--model": ("nothing_like_it", "missing.py:net", "no.such.module:net", ":", "x:"),
    }
    for name, values in wrong.items():
        for value in values:
            yield f"{name} {str(value)[:24]!r}", (lambda at, n=name, v=value: at.start(n, v)), ""


def commands() -> Iterator[Case]:
    """Command lines that make no sense, and folders that are none."""
    lines: dict[str, Callable[[Place], list[object]]] = {
        "no such command": lambda at: ["serch"],
        "no such option": lambda at: at.start("--sizebudget", "1MB"),
        "an option without a value": lambda at: ["run", "--size-budget"],
        "no budget": lambda at: ["run", *at.model(), *at.data(), "--out", at.here / "out"],
        "a file for a folder": lambda at: at.start("--out", at.file("file", b"precious")),
        "a folder that cannot be": lambda at: at.start("--out", "/proc/out"),
        "a folder below a file": lambda at: at.start("--out", at.file("file", b"precious") / "out"),
        "a name too long": lambda at: at.start("--out", at.here / ("x" * 300)),
        "a name with a null": lambda at: ["front", f"{at.here}/a\0b"],
        "front of nothing": lambda at: ["front", at.here],
        "front of a missing folder": lambda at: ["front", at.here / "missing"],
        "front of a name with a line break": lambda at: ["front", at.here / "a\nb"],
        "front of a name from right to left": lambda at: ["front", at.here / "\u202eabc"],
        "front of a name with colours": lambda at: ["front", at.here / "\x1b[31mred"],
        "front of a long name": lambda at: ["front", at.here / ("x" * 255)],
        "front of a leading dash": lambda at: ["front", "--", "-x"],
        "front of too few points": lambda at: ["front", at.run, "--points", "1"],
        "search of nothing": lambda at: ["search", at.here],
        "search of a missing folder": lambda at: ["search", at.here / "missing"],
        "finalize of nothing": lambda at: ["finalize", at.here],
        "export of nothing": lambda at: ["export", at.here],
        "export of an unknown format": lambda at: ["export", at.run, "--format", "xml"],
        "export to nowhere": lambda at: ["export", at.run, "--out", at.here / "missing" / "bits.json"],
        "export to a folder": lambda at: ["export", at.run, "--out", at.here],
        "compare of one": lambda at: ["compare", at.run],
        "compare with nothing": lambda at: ["compare", at.run, at.here],
        "compare to no picture": lambda at: ["compare", at.run, at.run, "--plot", at.here / "x.jpg"],
        "compare to nowhere": lambda at: ["compare", at.run, at.run, "--plot", at.here / "missing" / "x.png"],
        "why of no name": lambda at: ["why", at.run, "budgt"],
        "why of no point": lambda at: ["why", at.run, "99999"],
        "why of a huge number": lambda at: ["why", at.run, "9" * 400],
        "why of fewer than no interactions": lambda at: ["why", at.run, "budget", "--strongest", "-1"],
        "pick nothing": lambda at: ["finalize", at.run, "--pick", ""],
        "workers below none": lambda at: ["finalize", at.run, "--workers", "-1"],
        "workers beyond count": lambda at: ["finalize", at.run, "--workers", "1e9"],
        "an engine that is none": lambda at: ["finalize", at.run, "--backend", "spark"],
        "a scheduler for loky": lambda at: ["finalize", at.run, "--scheduler", "tcp://x:1"],
        "reconstruct without bits": lambda at: ["reconstruct", *at.model(), *at.data()],
        "profile to no table": lambda at: ["profile", *at.model(), "--out", at.here / "x.txt"],
        "profile by no runtime": lambda at: ["profile", *at.model(), "--out", at.here / "x.csv", "--runtime", "tvm"],
        "devices of no name": lambda at: ["devices", "no-such-device"],
    }
    for name, line in lines.items():
        yield name, line, ""


LOOKS = {
    "front.json": ["front", "compare"], "costs.json": ["front", "why"], "layers.json": ["front", "export"],
    "chosen/budget.json": ["front", "export"], "sensitivity.safetensors": ["front", "why"],
    "config.toml": ["search", "finalize"],
}  # fmt: skip


def run_files() -> Iterator[Case]:
    """Files of a run folder that somebody replaced, cut off, or took from elsewhere."""

    def looked(at: Place, name: str, data: bytes, look: str) -> list[object]:
        (at.run / name).write_bytes(data)
        more: dict[str, list[object]] = {"why": ["budget"], "compare": [at.run]}
        return [look, at.run, *more.get(look, [])]

    for name, looks in LOOKS.items():
        for number, (what, data) in enumerate(GARBAGE.items()):
            if (name, what) == ("config.toml", "empty"):
                continue  # which says nothing, and then no budget
            look = looks[number % len(looks)]
            yield f"{name} is {what}", (lambda at, n=name, d=data, k=look: looked(at, n, d, k)), name
        for share in (0.1, 0.5, 0.98):

            def cut(at: Place, name: str = name, share: float = share, look: str = looks[0]) -> list[object]:
                data = (at.run / name).read_bytes()
                return looked(at, name, data[: int(share * len(data))], look)

            yield f"{name} ends after {share:.0%}", cut, name

    def changed(at: Place, name: str, look: str, change: Callable[[Any], object]) -> list[object]:
        data = json.loads((at.run / name).read_text())
        change(data)
        return looked(at, name, json.dumps(data).encode(), look)

    edits: list[tuple[str, str, str, Callable[[Any], object]]] = [
        ("front.json", "front", "another network", lambda d: d["layers"].reverse()),
        ("front.json", "front", "choices out of range", lambda d: d["points"][0][1].__setitem__(0, 99)),
        ("front.json", "front", "NaN for an objective", lambda d: d["points"][0][0].__setitem__(0, float("nan"))),
        ("front.json", "front", "numbers of 10⁴⁰⁰", lambda d: d["points"][0][0].__setitem__(0, 10**400)),
        ("front.json", "front", "no points", lambda d: d.__setitem__("points", [])),
        ("front.json", "front", "unknown precisions", lambda d: d["precisions"].__setitem__(0, "W1A1")),
        ("costs.json", "front", "fewer layers", lambda d: d["layers"].pop()),
        ("costs.json", "why", "a table of another shape", lambda d: d["weight_bytes"].pop()),
        ("costs.json", "front", "infinite costs", lambda d: d["bops"][0].__setitem__(0, float("inf"))),
        ("costs.json", "front", "texts for numbers", lambda d: d["code_bits"][0].__setitem__(0, "x")),
        ("layers.json", "front", "another format", lambda d: d.__setitem__("format", 99)),
        ("layers.json", "front", "an older format", lambda d: d.__setitem__("format", 1)),
        ("layers.json", "front", "a layer twice", lambda d: d["table"]["layers"].append(d["table"]["layers"][0])),
        ("layers.json", "front", "a negative size", lambda d: d["table"]["layers"][0].__setitem__("groups", -1)),
        ("layers.json", "front", "an empty pair", lambda d: d["table"]["layers"][0].__setitem__("kernel", [])),
        ("chosen/budget.json", "export", "no metrics", lambda d: d.pop("metrics")),
        ("chosen/budget.json", "front", "unknown bits", lambda d: d["config"].__setitem__("0", "W99A99")),
        ("chosen/budget.json", "export", "another network", lambda d: d["config"].pop("0")),
    ]
    for name, look, what, change in edits:
        part = "version of mpsearch" if "format" in what else name
        yield f"{name}: {what}", (lambda at, n=name, k=look, c=change: changed(at, n, k, c)), part
    lines = {"an unknown key": b"x = 1\n", "a wrong type": b'seed = "a"\n', "a key twice": b"seed = 0\n"}
    for what, line in lines.items():

        def added(at: Place, line: bytes = line) -> list[object]:
            return looked(at, "config.toml", (at.run / "config.toml").read_bytes() + line, "search")

        yield f"config.toml: {what}", added, "config.toml"
    for what, data in {**GARBAGE, "an unknown precision": b'{"0": "W99"}', "another network": b'{"x": "W4"}'}.items():
        yield (
            f"bits are {what}",
            (lambda at, d=data: ["why", at.run, at.file("bits.json", d)]),
            "bits.json",
        )


def devices() -> Iterator[Case]:
    """Device files and lookup tables."""
    for what, data in GARBAGE.items():
        if what != "a huge number":
            yield f"a device is {what}", (lambda at, d=data: ["devices", at.file("device.toml", d)]), "device.toml"
        yield f"a table of JSON is {what}", (lambda at, d=data: ["devices", at.file("table.json", d)]), "table.json"
        yield f"a table of CSV is {what}", (lambda at, d=data: ["devices", at.file("table.csv", d)]), "table.csv"
    for what, text in {
        "no model": 'name = "x"\n', "an unknown model": 'name = "x"\nmodel = "magic"\n',
        "a deep table": "a = " + "[" * 5000 + "]" * 5000, "a number of 10⁴⁰⁰": f"a = 1{'0' * 5000}",
    }.items():  # fmt: skip
        yield f"a device with {what}", (lambda at, t=text: ["devices", at.file("device.toml", t.encode())]), ""


class Evil:
    """What runs code where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def weights() -> Iterator[Case]:
    """Weights that are none, or those of something else."""
    for what, data in GARBAGE.items():
        for name in ("w.pt", "w.safetensors"):
            yield (
                f"{name} is {what}",
                (lambda at, n=name, d=data: at.start("--weights", at.file(n, d))),
                name,
            )

    def state(at: Place) -> dict[str, Any]:
        return dict(torch.load(at.tiny / "net.pt", weights_only=True))

    def saved(at: Place, change: Callable[[dict[str, Any]], object]) -> list[object]:
        tensors = state(at)
        change(tensors)
        save_file(tensors, at.here / "w.safetensors")
        return at.start("--weights", at.here / "w.safetensors")

    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "a tensor is missing": lambda s: s.pop("0.bias"),
        "a tensor too many": lambda s: s.__setitem__("extra", torch.zeros(1)),
        "another shape": lambda s: s.__setitem__("0.bias", torch.zeros(9)),
        "another type": lambda s: s.__setitem__("0.bias", torch.zeros(8, dtype=torch.int64)),
        "NaN": lambda s: s["0.bias"].fill_(float("nan")),
        "infinity": lambda s: s["0.bias"].fill_(float("inf")),
    }
    for what, change in changes.items():
        yield f"weights: {what}", (lambda at, c=change: saved(at, c)), "w.safetensors"

    def pickled(at: Place) -> list[object]:
        torch.save({"0.weight": Evil(at.here / "ran")}, at.here / "w.pt")
        return at.start("--weights", at.here / "w.pt")

    def declared(at: Place) -> list[object]:
        header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
        return at.start("--weights", at.file("w.safetensors", struct.pack("<Q", len(header)) + header))

    def long_header(at: Place) -> list[object]:
        return at.start("--weights", at.file("w.safetensors", struct.pack("<Q", 2**60) + b"{}"))

    def nowhere(at: Place) -> list[object]:
        os.symlink(at.here / "missing", at.here / "w.pt")
        return at.start("--weights", at.here / "w.pt")

    def bomb(at: Place) -> list[object]:
        torch.save(state(at), at.here / "plain.pt")
        with zipfile.ZipFile(at.here / "plain.pt") as plain, zipfile.ZipFile(at.here / "w.pt", "w", 8) as packed:
            for entry in plain.namelist():
                packed.writestr(entry, bytes(10**7) if "/data/" in entry else plain.read(entry))
        return at.start("--weights", at.here / "w.pt")

    yield "weights that are a zip bomb", bomb, "would unpack to"
    yield "weights with code", pickled, "never run"
    yield "weights of a huge shape", declared, "w.safetensors"
    yield "weights with a huge header", long_header, "w.safetensors"
    yield "weights behind a broken link", nowhere, "w.pt"
    yield "weights are a folder", (lambda at: at.start("--weights", at.here)), ""
    for what, text in {"no JSON": b"{", "NaN": b'{"mean": [NaN]}', "texts": b'{"input_size": ["a"]}'}.items():

        def beside(at: Place, text: bytes = text) -> list[object]:
            save_file(state(at), at.here / "w.safetensors")
            at.file("w.json", text)
            return at.start("--weights", at.here / "w.safetensors")

        yield f"the JSON beside weights is {what}", beside, "w.json"


def _png(width: int, height: int) -> bytes:
    """The head of a picture that says that it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def images() -> Iterator[Case]:
    """Folders of images one of which is none."""

    def among(at: Place, data: bytes, name: str = "zz.png") -> list[object]:
        pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
        for number in range(24):
            path = at.here / "images" / "calib" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        at.file(f"images/calib/{name}", data)
        return ["run", *at.model(), "--data", at.here / "images", "--size-budget", "6kB", "--out", at.here / "out"]

    files = {
        "empty": b"", "text": b"hello", "zeros": bytes(2000), "a picture cut off": _png(12, 12)[:40],
        "a bomb": _png(100_000, 100_000), "a picture without pixels": _png(12, 12),
        "a bomb below the limit of Pillow": _png(12_000, 12_000), "no wider than nothing": _png(0, 12),
    }  # fmt: skip
    for what, data in files.items():
        yield f"an image is {what}", (lambda at, d=data: among(at, d)), "zz.png"
    yield "an image with a line break in its name", (lambda at: among(at, b"", "a\nb.png")), "a\\nb.png"
    yield "an image of numbers of no range", (lambda at: among(at, _floating(), "zz.tif")), "zz.tif"
    yield "a broken link", _linked("missing.png"), ""
    yield "a link to a device", _linked("/dev/zero"), "a pipe or a device"
    yield "a link out of the folder to a text", _linked("/etc/hosts"), "cannot be read"
    yield "a pipe", _pipe, "a pipe or a device"
    yield "no images", (lambda at: at.start("--data", at.here)), ""


def _floating() -> bytes:
    import io

    out = io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 144, dtype=np.float32).reshape(12, 12)).save(out, "TIFF")
    return out.getvalue()


def _linked(to: str) -> Callable[[Place], list[object]]:
    """A folder of links to one place."""

    def made(at: Place) -> list[object]:
        (at.here / "images" / "calib").mkdir(parents=True)
        for number in range(24):
            os.symlink(at.here / to, at.here / "images" / "calib" / f"{number}.png")
        return at.start("--data", at.here / "images")

    return made


def _pipe(at: Place) -> list[object]:
    (at.here / "images").mkdir()
    for number in range(24):
        os.mkfifo(at.here / "images" / f"{number}.png")
    return at.start("--data", at.here / "images")


def arrays() -> Iterator[Case]:
    """Arrays that are no samples."""
    for what, data in GARBAGE.items():
        yield f"arrays are {what}", (lambda at, d=data: at.start("--data", at.file("x.npz", d))), "x.npz"

    def saved(at: Place, **named: Any) -> list[object]:
        np.savez(at.here / "x.npz", **named)
        return at.start("--data", at.here / "x.npz")

    wrong: dict[str, dict[str, Any]] = {
        "no x": {"z": np.zeros(3)}, "no samples": {"x": np.zeros((0, 12, 12, 3), np.uint8)},
        "a single number": {"x": np.float32(3)}, "texts": {"x": np.array(["a", "b"])},
        "NaN": {"x": np.full((40, 3, 12, 12), np.nan, np.float32)},
        "deep images": {"x": np.zeros((40, 12, 12), np.uint16)},
        "infinity": {"x": np.full((40, 3, 12, 12), np.inf, np.float32)},
        "objects": {"x": np.array([{}, []], object)}, "complex numbers": {"x": np.zeros((40, 3), complex)},
        "labels of another length": {"x": np.zeros((40, 12, 12, 3), np.uint8), "y": np.zeros(3, int)},
        "texts as labels": {"x": np.zeros((40, 12, 12, 3), np.uint8), "y": np.array(["a"] * 40)},
        "channels first": {"x": np.zeros((40, 3, 12, 12), np.uint8)},
        "too few": {"x": np.zeros((4, 12, 12, 3), np.uint8)},
    }  # fmt: skip
    for what, named in wrong.items():
        yield f"arrays: {what}", (lambda at, n=named: saved(at, **n)), ""

    def declared(at: Place, compressed: int) -> list[object]:
        head = np.lib.format.magic(1, 0)
        text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 12, 12, 3), }"
        text += b" " * (-(len(head) + 3 + len(text)) % 64) + b"\n"
        with zipfile.ZipFile(at.here / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", head + struct.pack("<H", len(text)) + text + bytes(compressed))
        return at.start("--data", at.here / "x.npz")

    yield "arrays of a huge shape", (lambda at: declared(at, 100)), "x.npz"
    yield "arrays that are a zip bomb", (lambda at: declared(at, 10**7)), "x.npz"


CASES: list[Case] = [
    case for kind in (options, commands, run_files, devices, weights, images, arrays) for case in kind()
]
