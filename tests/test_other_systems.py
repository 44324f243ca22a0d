"""What Windows and macOS lack is missed by nothing: everything imports without it."""

from __future__ import annotations

import subprocess
import sys

HIDE = """
import importlib, os, pkgutil, sys, warnings

# Everything of others is there first: it has its own ways on other systems.
import torch, numpy, scipy.optimize, pymoo.algorithms.moo.nsga2, matplotlib.figure, joblib, rich, typer, PIL.Image
import filelock, torchvision, torch.export, safetensors.numpy, moocore, psutil, threadpoolctl, cloudpickle

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("resource", "fcntl", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in ("resource", "fcntl"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
for name in ("fork", "sched_getaffinity", "posix_fallocate", "geteuid", "getppid"):
    if hasattr(os, name):
        delattr(os, name)
import signal
del signal.SIGHUP
import ctypes
ctypes.CDLL = None

failed = []
for package in ("hwmodel", "recon", "mpsearch"):
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
            except Exception as error:
                failed.append(f"{found.name}: {type(error).__name__}: {error}")
print("\\n".join(failed))
"""


def test_everything_imports_without_what_only_some_systems_have() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", HIDE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
