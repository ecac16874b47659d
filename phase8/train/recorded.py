"""A function of tensors recorded once as a CUDA graph, then replayed.

Of a small network's step a GPU spends most in waiting for the next of some thousand short kernels; a replay asks for
all of them at once (PyTorch's notes on CUDA graphs).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
WARM = 3
"""Calls before recording, as PyTorch asks for: libraries reserve what they need in these."""
CLOSE = 1e-2
"""Largest distance of a replay from the plain call, relative to its size, that is taken for rounding."""


class Recorded:
    """Called as the function; the arguments' shapes are those of the first call.

    A function that cannot be recorded, or whose replay answers other arguments otherwise than the function does, is
    called as it is: slower, not wrong. What is returned is overwritten by the next call.

    Args:
        function: of CUDA tensors, without a decision that depends on their values.
    """

    def __init__(self, function: Function) -> None:
        self._function, self._graph = function, None
        self._inputs: list[Tensor] = []
        self._outputs: tuple[Tensor, ...] = ()
        self.why_not: str | None = None
        """Why it is called as it is; None while it is replayed."""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.why_not is not None or not inputs[0].is_cuda:
            return self._function(*inputs)
        if self._graph is not None:
            if any(known.shape != given.shape for known, given in zip(self._inputs, inputs, strict=True)):
                return self._function(*inputs)
            return self._replay(inputs)
        try:
            self._record(inputs)
        except RuntimeError as error:
            self._give_up(str(error).splitlines()[0])
            torch.cuda.synchronize()
            return self._function(*inputs)
        expected = self._function(*inputs)
        if not _alike(expected, self._replay(inputs)):
            self._give_up("a replay gave other values")
        return expected

    def _give_up(self, why: str) -> None:
        self.why_not = why
        logging.getLogger(__name__).warning("a training step is not recorded as a CUDA graph: %s", why)

    def _record(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = [torch.zeros_like(given) for given in inputs]  # other arguments than those it is tried on
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                self._function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._outputs = self._function(*self._inputs)
        self._graph = graph

    def _replay(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for known, given in zip(self._inputs, inputs, strict=True):
            known.copy_(given)
        self._graph.replay()
        return self._outputs


def _alike(expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    far = [float((a - b).double().norm()) for a, b in zip(expected, found, strict=True)]
    size = [float(a.double().norm()) for a in expected]
    return all(d <= CLOSE * s for d, s in zip(far, size, strict=True))  # false where either is not a number
