"""A limit of the address space that leaves no room for the libraries: said before they are loaded."""

from __future__ import annotations

import psutil

from hwmodel import InputError

OTHERS = 700_000_000  # bytes of address space that libraries take beside torch


def require_address_space() -> None:
    """Raises InputError where `ulimit -v` leaves no room for torch, scipy and torchvision: OpenBLAS would ask for its
    buffers again and again, for ever."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    try:
        import torch  # noqa: F401  which takes most
    except (ImportError, OSError, MemoryError) as error:
        what = f"torch cannot be loaded ({error})"
    else:
        taken = psutil.Process().memory_info().vms
        if limit - taken >= OTHERS:
            return
        what = f"torch alone has taken {taken:,}"
    raise InputError(
        f"ulimit -v allows {limit:,} bytes of address space, which is too little: {what}; raise it, or limit memory "
        "by a container or a cgroup, which count what is used and not what is mapped"
    )
