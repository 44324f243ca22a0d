"""The rules of the house: imports go one way, public names are declared, nothing large or foreign is committed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hwmodel", "recon", "mpsearch")
MOST_LINES = 350
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


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, inside functions and for type checkers as well."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
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


def test_recon_takes_only_vocabulary_and_writing_from_hwmodel() -> None:
    vocabulary = {"hwmodel", "hwmodel.files", "hwmodel.errors", "hwmodel.layer", "hwmodel.precision"}
    known = set(modules("hwmodel"))
    for name, path in modules("recon").items():
        taken = {imports for imports in imported(path) if imports in known}
        assert taken <= vocabulary, f"{name} imports {taken - vocabulary}"


def file_graph(package: str) -> dict[str, set[str]]:
    """Which modules of a package every module of it imports, inside functions and for type checkers as well."""
    files = modules(package)
    graph = {name: {other for other in imported(path) if other in files} for name, path in files.items()}
    graph[package] = set()  # the package's own __init__ is loaded before its modules, which do not import it back
    return graph


def folder_graph(package: str) -> dict[str, set[str]]:
    """The same between folders; a file that lies in the package's root is a folder of its own."""
    graph: dict[str, set[str]] = {}
    for name, imports in file_graph(package).items():
        room = _room(name)
        graph.setdefault(room, set()).update(_room(other) for other in imports if _room(other) != room)
    return graph


def _room(name: str) -> str:
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_imports_itself_in_a_circle(package: str) -> None:
    _require_no_circle(file_graph(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_imports_itself_in_a_circle(package: str) -> None:
    _require_no_circle(folder_graph(package))


def _require_no_circle(graph: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join((*above, name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_file_is_one_concept(package: str) -> None:
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in modules(package).items()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_says_what_it_holds(package: str) -> None:
    for folder in {path.parent for path in modules(package).values()}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))), folder


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_there(package: str) -> None:
    module = __import__(package)
    assert list(module.__all__) == sorted(module.__all__, key=lambda name: (not name.isupper(), name))
    for name in module.__all__:
        assert getattr(module, name).__doc__ or name.isupper()


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, mpsearch.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_module_is_there_without_what_windows_lacks() -> None:
    names = [name for package in PACKAGES for name in modules(package) if not name.endswith("__main__")]
    code = f"""
import ctypes, importlib, psutil, safetensors, scipy.optimize, sys, threadpoolctl, torch, torchvision
for name in ("matplotlib.pyplot", "pymoo.algorithms.moo.nsga2", "pymoo.indicators.hv", "moocore", "joblib"):
    importlib.import_module(name)  # what others ask for by themselves is theirs
def refuse(*_, **__):
    raise OSError("no library")
ctypes.CDLL = refuse
sys.modules["resource"] = None
for name in {names}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("docs/*.md")))
def test_files_that_pages_name_are_there(page: str) -> None:
    for name in re.findall(
        rf"`((?:{'|'.join(PACKAGES)}|tests|benchmarks)/[^` ]*)`", (ROOT / "docs" / page).read_text("utf-8")
    ):
        assert (ROOT / name).exists(), name


def test_committed_files_are_small() -> None:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    large = [name for name in listed.split("\0") if name and (ROOT / name).stat().st_size > 5_000_000]
    assert large == []
