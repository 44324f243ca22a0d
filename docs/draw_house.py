"""Draws docs/house.png: the folders of the three packages as rooms, and who imports whom as arrows.

    python docs/draw_house.py

Rooms stand on those that they import; arrows that another path implies are left out.
"""

from __future__ import annotations

import ast
import textwrap
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"mpsearch": "#dbe9f6", "recon": "#e3f1dd", "hwmodel": "#f6e8d4"}
Graph = dict[str, set[str]]


def room_of(module: str) -> str:
    """The folder, or the file in a package's root, that a module belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] != "hwmodel" else "hwmodel"


def read() -> tuple[Graph, dict[str, list[str]]]:
    """By room, the rooms that it imports, and its files."""
    imports: Graph = defaultdict(set)
    files: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if path.name in ("__init__.py", "__main__.py"):
                continue
            room = room_of(module)
            inside = module.split(".")[room.count(".") + 1 :]
            name = f"{inside[0]}/" if len(inside) > 1 else path.stem  # a folder in the folder, or a file
            if name not in files[room]:
                files[room].append(name)
            imports[room] |= set()
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
                imports[room] |= {room_of(name) for name in names if name.split(".")[0] in PACKAGES and "." in name}
    rooms = set(files)
    return {room: (others & rooms) - {room} for room, others in imports.items()}, files


def heights(graph: Graph) -> dict[str, int]:
    """How many rooms stand below each, on the longest way down."""
    found: dict[str, int] = {}

    def height(room: str) -> int:
        if room not in found:
            found[room] = 1 + max((height(other) for other in graph[room]), default=-1)
        return found[room]

    for room in graph:
        height(room)
    return found


def direct(graph: Graph) -> Graph:
    """The arrows that no longer way implies."""
    below: Graph = {}

    def reach(room: str) -> set[str]:
        if room not in below:
            below[room] = graph[room] | {far for near in graph[room] for far in reach(near)}
        return below[room]

    return {
        room: {near for near in others if not any(near in reach(other) for other in others if other != near)}
        for room, others in graph.items()
    }


def draw(path: Path) -> None:
    """Writes the picture."""
    graph, files = read()
    levels: dict[int, list[str]] = defaultdict(list)
    for room, level in heights(graph).items():
        levels[level].append(room)
    wide, tall = max(map(len, levels.values())), len(levels)
    figure, axes = plt.subplots(figsize=(2.7 * wide, 1.35 * tall))
    places: dict[str, tuple[float, float]] = {}
    for level, rooms in levels.items():
        rooms.sort(key=lambda room: (list(PACKAGES).index(room.split(".")[0]), room))
        for at, room in enumerate(rooms):
            places[room] = ((at + 0.5) * wide / len(rooms), float(level))
    for room, others in direct(graph).items():
        for other in others:
            (x, y), (to_x, to_y) = places[room], places[other]
            arrow = {"arrowstyle": "-|>", "color": "#888888", "lw": 0.8, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (to_x, to_y + 0.3), (x, y - 0.3), arrowprops=arrow)
    for room, (x, y) in places.items():
        colour = PACKAGES[room.split(".")[0]]
        box = FancyBboxPatch((x - 0.44, y - 0.3), 0.88, 0.6, "round,pad=0.02", fc=colour, ec="#555555", lw=0.8)
        axes.add_patch(box)
        names = files[room] if files[room] != [room.rpartition(".")[2]] else []
        lines = textwrap.wrap(", ".join(names), 40)
        axes.text(x, y + 0.19, room, ha="center", va="center", fontsize=9, weight="bold")
        axes.text(x, y - 0.07, "\n".join(lines), ha="center", va="center", fontsize=5)
    axes.set_xlim(0, wide)
    axes.set_ylim(-0.6, tall - 0.3)
    axes.axis("off")
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(__file__).with_name("house.png"))
