"""What the encoders of all trajectories share: blocks, steps, and numbers of 16 bits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn

from phase8.codecs.base import (
    EncodedGroup,
    EncodedTensor,
    Stream,
    float16_bits,
    float16_values,
    round_through,
)
from phase8.codecs.hyper.decode import (
    MAX_EXPONENT,
)
from phase8.codecs.matrices import Matrix, in_parts, size_of
from phase8.lossless.bitpack import narrowest

LARGEST_HALF = 65504.0
LEAST_WIDTH = 2.0**-14
"""Least side and shrink: the smallest float16 of full precision, so that neither reaches 0."""
AT_ONCE = 1 << 20
"""Weights worked on at a time: copies in float64 or scaled are of so many, not of a whole matrix."""
STEP_TRIALS = np.geomspace(1.0, 0.15, 24)
"""Candidate steps, as fractions of the one that reaches the largest coefficient."""


def shapes_of(taken: dict[str, Matrix]) -> dict[str, tuple[int, ...]]:
    """Shape of every matrix, by name."""
    return {name: matrix.shape for name, matrix in taken.items()}


def whole(matrix: Matrix) -> Tensor:
    """All weights of a matrix, in row-major order."""
    return matrix.part(0, size_of(matrix))


def rms(matrix: Matrix) -> float:
    """Root-mean-square of the weights."""
    energy = sum(float(part.double().square().sum()) for part in in_parts(matrix, AT_ONCE))
    return math.sqrt(energy / max(size_of(matrix), 1))


def blocks(w: Tensor, length: int) -> Tensor:
    """[numel] -> [B, length], the last block filled up with zeros."""
    count = math.ceil(w.numel() / length) if length else 0
    return nn.functional.pad(w, (0, count * length - w.numel())).reshape(count, max(length, 1))


def quantise(
    values: np.ndarray,
    largest: float,
    exponent: int,
    top: int,
    weights: np.ndarray | None = None,
    trials: np.ndarray = STEP_TRIALS,
) -> tuple[np.ndarray, float]:
    """Rounds to multiples of the step of least (weighted) squared error among the candidates; the multiples, the step.

    Args:
        largest: the step that reaches the largest value.
        exponent: the step is a float16 times 2^exponent.
    """
    best, multiples, step = math.inf, np.zeros_like(values), 0.0
    for trial in trials:
        tried = float(half(np.array([largest * trial / 2.0**exponent]))[0]) * 2.0**exponent
        q = np.clip(np.rint(values / tried), -top, top) if tried > 0 else np.zeros_like(values)
        squares = (values - q * tried) ** 2
        error = float((squares if weights is None else squares * weights).sum())
        if error < best:
            best, multiples, step = error, q, tried
    return multiples, step


def exponent_of(scales: Iterator[float]) -> int:
    """The power of two that brings the largest scale to between 128 and 256, far from both ends of float16."""
    largest = max(scales)
    return max(-MAX_EXPONENT, min(MAX_EXPONENT, math.ceil(math.log2(largest)) - 8)) if largest > 0 else 0


def half(x: np.ndarray) -> np.ndarray:
    """float32 values as float16 holds them."""
    return float16_values(float16_bits(np.clip(x, -LARGEST_HALF, LARGEST_HALF)))


def half_stream(x: np.ndarray | Tensor) -> Stream:
    """Numbers as a stream of float16."""
    return Stream(values=float16_bits(x), bits=16)


def half_through(x: Tensor, least: float = -LARGEST_HALF) -> Tensor:
    """Rounded to float16 straight-through, not below `least`."""
    return round_through(x, x.clamp(least, LARGEST_HALF).half().float())


def group_of(
    codec: str,
    settings: dict,
    shapes: dict[str, tuple[int, ...]],
    role: str,
    codes: dict[str, np.ndarray],
    bits: int,
    scales: dict[str, float],
    shared: dict[str, Stream],
) -> EncodedGroup:
    """A group from the codes and scales of its tensors; a tensor without codes has no streams."""
    unit = 2.0 ** settings["exponent"]
    tensors = {
        name: EncodedTensor(
            shape=shapes[name],
            streams={
                role: Stream(values=codes[name].astype(narrowest(bits), copy=False), bits=bits),
                "scale": half_stream(np.array([scales[name] / unit])),
            }
            if name in codes
            else {},
        )
        for name in shapes
    }
    return EncodedGroup(codec=codec, settings=settings, tensors=tensors, shared=shared)


def with_coefficients(group: EncodedGroup, stored: list[tuple[Tensor, Tensor]], top: int) -> EncodedGroup:
    """The group with other coefficients (whole numbers) and scales, one pair for each of its tensors."""
    tensors = {}
    for (name, tensor), (q, scale) in zip(group.tensors.items(), stored, strict=True):
        old = tensor.streams["coefficients"]
        values = (q.detach().cpu().numpy().reshape(-1) + top).astype(old.values.dtype)
        streams = {"coefficients": Stream(values=values, bits=old.bits), "scale": half_stream(scale)}
        tensors[name] = EncodedTensor(shape=tensor.shape, streams=streams)
    return EncodedGroup(codec=group.codec, settings=dict(group.settings), tensors=tensors, shared={})
