"""A weight matrix as the encoders see it: a shape, and its weights part by part, from memory or from a file.

An encoder that asks for no more than `AT_ONCE` weights at a time needs the same memory for a matrix of any size. Those
that have to see all of a matrix at once ask for all of it.

Example: of a matrix [3, 2] with the rows (1, 2), (3, 4), (5, 6), `part(1, 4)` is (2, 3, 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from phase8.errors import CodecError

AT_ONCE = 1 << 22
"""Weights: 16 MiB in float32."""


class Matrix(Protocol):
    """A matrix [O, I] of float32 weights that need not be in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(O, I); an encoder refuses other shapes."""

    def part(self, begin: int, end: int) -> Tensor:
        """Weights `begin` .. `end` - 1 in row-major order, float32 [end - begin]; perhaps a view: not to be changed."""


class HeldMatrix:
    """A matrix in memory."""

    def __init__(self, weights: Tensor) -> None:
        self.shape = tuple(weights.shape)
        self._flat = weights.detach().to("cpu", torch.float32).reshape(-1)

    def part(self, begin: int, end: int) -> Tensor:
        """See `Matrix.part`; a view."""
        return self._flat[begin:end]


def matrices(weights: Mapping[str, Tensor | Matrix]) -> dict[str, Matrix]:
    """What an encoder was given, tensors as `HeldMatrix`."""
    return {name: HeldMatrix(each) if isinstance(each, Tensor) else each for name, each in weights.items()}


def size_of(matrix: Matrix) -> int:
    """Number of weights."""
    return math.prod(matrix.shape)


def in_parts(matrix: Matrix, size: int | None = None) -> Iterator[Tensor]:
    """All weights in row-major order, `size` (`AT_ONCE`) at a time, the last part shorter."""
    total, size = size_of(matrix), size or AT_ONCE
    for begin in range(0, total, size):
        yield matrix.part(begin, min(begin + size, total))


def extremes(name: str, matrix: Matrix) -> tuple[float, float]:
    """The least and the largest weight; 0 and 0 of an empty matrix.

    Raises:
        CodecError: NaN or infinite weights.
    """
    found = [end for part in in_parts(matrix) for end in part.aminmax()] or [torch.zeros(())]
    low, high = map(float, torch.stack(found).aminmax())  # a NaN passes through both
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CodecError("the matrix holds NaN or infinite weights", where=name, fix="train the model anew")
    return low, high
