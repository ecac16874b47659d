"""Pieces of work side by side, each on one of torch's threads.

The products of a small network are too short to be worth dividing among threads; batches are not.
"""

from __future__ import annotations

import copy
import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""

Apply = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""As `map`; results come in the order of what was given."""


@contextmanager
def side_by_side(device: torch.device) -> Iterator[tuple[int, Apply]]:
    """How many pieces run at once, and how to run them; on a GPU one after the other.

    Inside, torch divides nothing else among threads: what a small network leaves to divide takes longer so.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if device.type == "cpu":
        _keep_memory()
    if threads == 1:
        yield 1, map
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield threads, pool.map
    finally:
        torch.set_num_threads(threads)


def _keep_memory() -> None:
    """Tells glibc not to hand memory back between steps: to get it again, page by page, took 5 to 15 % of a step."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 25)  # the most it takes
        mallopt(_TRIM_THRESHOLD, 1 << 30)


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """The network itself where it is there already, else a copy: it belongs to somebody else."""
    at_home = next(network.parameters()).device.type == device.type
    return network if at_home else copy.deepcopy(network).to(device)
