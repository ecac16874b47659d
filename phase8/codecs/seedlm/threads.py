"""Work in threads that stay, each with arrays of its own that are used again."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Scratch(threading.local):
    """Arrays of each thread that are used again: large ones that come and go cost more in page faults than in sums."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Float32 of this shape with arbitrary content, until the next `take` of this name."""
        size = math.prod(shape)
        if name not in self._memory or self._memory[name].numel() < size:
            self._memory[name] = torch.empty(size)
        return self._memory[name][:size].view(shape)


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that stay: what MKL allocates for a thread's products outlives the thread. A fork has none of them."""
    return ThreadPoolExecutor(threads)


def in_threads(work: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
    """The results of `work`, in order, from as many threads as torch may use, each without threads of its own.

    What a call does must not depend on the thread. The operations are too small to divide, but large enough that the
    threads rarely wait for the interpreter's lock.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _pool(threads, os.getpid()).map(work, numbers)
    finally:
        torch.set_num_threads(threads)
