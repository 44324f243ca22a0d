"""Where a command computes: the device, and the threads of this process."""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_limits

from hwmodel import InputError
from mpsearch.request.compute import ComputeOptions
from recon.compute.arithmetic import best_device


def place(options: ComputeOptions) -> torch.device:
    """The device that the options ask for; their number of threads is what this process has from now on.

    Our own pools have as many as torch. Raises InputError where there is no such device.
    """
    device = best_device() if options.compute is None else torch.device(options.compute)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            there = f"{count} GPUs" if count > 1 else "one GPU, cuda:0" if count else "no GPU that torch can use"
            raise InputError(f"--compute {options.compute}: there is {there}; --compute cpu does without")
    if options.threads:
        torch.set_num_threads(options.threads)
        threadpool_limits(options.threads)
    return device


def place_name(device: torch.device) -> str:
    """The device for people: cpu, or cuda with what kind of GPU it is."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
