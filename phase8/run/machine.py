"""What a run asks of the machine: threads, device, memory."""

from __future__ import annotations

import resource
import sys

import torch

from phase8.errors import ConfigError


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def set_threads(threads: int) -> None:
    """Sets PyTorch's CPU threads; 0 leaves PyTorch's own choice."""
    if threads:
        torch.set_num_threads(threads)


def check_device(device: str, devices: int = 1) -> None:
    """Raises `ConfigError` where PyTorch cannot use this device, or has not so many from it on."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        what = str(error).splitlines()[0]
        raise ConfigError(
            f"PyTorch cannot use the device {device!r}: {what}", where="device", fix="take trainer=cpu (device=cpu)"
        ) from error
    first = torch.device(device)
    if first.type == "cpu":
        return
    found = torch.cuda.device_count() - (first.index or 0) if first.type == "cuda" else 1
    if devices > found:
        raise ConfigError(
            f"devices is {devices}, and from {device} on PyTorch sees {found}", where="devices", fix=f"devices={found}"
        )
