"""Parameters and buffers that no layer holds, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from recon.graph.capture import Captured
from recon.graph.nodes import ELSEWHERE

OF_TORCH = frozenset(name for name, kind in vars(nn).items() if isinstance(kind, type))


def uncounted(captured: Captured, unfolded: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Every module of the model that holds parameters or float buffers outside of layers, with the reason why they are
    not quantized. `unfolded` are the reasons of batch norms, by path."""
    nodes = (node for node in captured.module.graph.nodes if node.op == "get_attr")
    read = {str(node.target).removeprefix(f"{ELSEWHERE}.") for node in nodes}
    by_module: dict[str, list[str]] = {}
    for path in captured.held:
        by_module.setdefault(path.rpartition(".")[0], []).append(path)
    parts: list[tuple[str, str]] = []
    for name, paths in by_module.items():
        kind = captured.held[paths[0]]
        left = [path for path in paths if path in read]
        if name in unfolded:
            parts.append((name, unfolded[name]))
        elif left and kind in OF_TORCH and name:
            parts.append((name, f"{kind} is not quantized"))
        elif left:
            parts += [(path, f"parameter of {kind}, used directly") for path in left]
        elif captured.used.isdisjoint(paths):
            parts.append((name or paths[0], "never used: it is not stored"))
    return tuple(parts)
