"""The rules of the house: imports go one way, public names are declared, nothing large or foreign is committed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hwmodel", "recon", "mpsearch")
# What each package may import, beside the standard library.
ALLOWED = {
    "hwmodel": {"numpy", "hwmodel"},
    "recon": {"numpy", "torch", "safetensors", "hwmodel", "recon"},
}


def modules(package: str) -> dict[str, Path]:
    """Every module of a package, by its dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports; `top_level_only` leaves out imports inside functions and for type checkers."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module))
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_it_may(package: str) -> None:
    for name, path in modules(package).items():
        roots = {imports.partition(".")[0] for imports in imported(path)} - set(sys.stdlib_module_names)
        assert roots <= ALLOWED[package], f"{name} imports {roots - ALLOWED[package]}"


def test_recon_takes_only_vocabulary_from_hwmodel() -> None:
    vocabulary = {"hwmodel", "hwmodel.errors", "hwmodel.layer", "hwmodel.precision"}
    known = set(modules("hwmodel"))
    for name, path in modules("recon").items():
        taken = {imports for imports in imported(path) if imports in known}
        assert taken <= vocabulary, f"{name} imports {taken - vocabulary}"


def test_no_module_imports_itself_in_a_circle() -> None:
    files = {name: path for package in PACKAGES for name, path in modules(package).items()}
    graph = {name: {other for other in imported(path, True) if other in files} for name, path in files.items()}
    for name in PACKAGES:  # a package's own __init__ is loaded before its modules, which do not import it back
        graph[name] = set()
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join((*above, name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_there(package: str) -> None:
    module = __import__(package)
    assert list(module.__all__) == sorted(module.__all__, key=lambda name: (not name.isupper(), name))
    for name in module.__all__:
        assert getattr(module, name).__doc__ or name.isupper()


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, mpsearch.cli.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_committed_files_are_small() -> None:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    large = [name for name in listed.split("\0") if name and (ROOT / name).stat().st_size > 5_000_000]
    assert large == []
