"""What lies between a codec and a file: integer streams, and the groups of tensors that they stand for.

A codec writes a *group*: matrices that were encoded together, with the streams that they share (a codebook) and the
streams that are each one's own. How many integers every stream holds, and of how many bits, follows from the codec's
settings and the tensors' shapes alone; that is the group's *layout*. A reader works the layout out first and compares,
so that no count in a file decides how much memory is taken. Example: VPTQ with vectors of 4 and 256 entries stores a
matrix of 8 x 3 as 6 indices of 8 bits and one scale of 16 bits.

Nothing here needs more than numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from phase8.errors import ArtifactError

JSON = int | float | str | bool | list["JSON"] | None
MAX_TENSOR_WEIGHTS = 1 << 32
MAX_DIMENSIONS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """A run of unsigned integers, each below 2**bits. Signed codes are stored with an offset, floats as their bits."""

    values: np.ndarray
    """1-D, uint8, uint16 or uint32."""
    bits: int
    """Width of the plain packing, 1 to 32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedTensor:
    """One tensor of a group: its shape (a matrix [O, I] but in the plain codec) and the streams that are its own."""

    shape: tuple[int, ...]
    streams: dict[str, Stream]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedGroup:
    """Matrices that were encoded together."""

    codec: str
    settings: dict[str, JSON]
    """What `decode` needs beside the streams; JSON only, stored once per group."""
    tensors: dict[str, EncodedTensor]
    shared: dict[str, Stream] = field(default_factory=dict)
    """Streams used by every tensor of the group, such as a codebook."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def pooled(self) -> dict[tuple[str, bool, int], np.ndarray]:
        """The values of all streams of one role, sharing and width, one after the other, as a file codes them.

        Returns:
            By role, whether the stream is shared, and bits.
        """
        runs: dict[tuple[str, bool, int], list[np.ndarray]] = {}
        for role, stream in self.shared.items():
            runs.setdefault((role, True, stream.bits), []).append(stream.values)
        for tensor in self.tensors.values():
            for role, stream in tensor.streams.items():
                runs.setdefault((role, False, stream.bits), []).append(stream.values)
        return {key: values[0] if len(values) == 1 else np.concatenate(values) for key, values in runs.items()}

    def packed_bits(self) -> int:
        """Bits of all streams in plain packing, before entropy coding and without the manifest."""
        own = [s for t in self.tensors.values() for s in t.streams.values()]
        return sum(s.bits * s.values.size for s in [*self.shared.values(), *own])


Sizes = dict[str, tuple[int, int]]
"""Per role of a stream: how many values, of how many bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Every stream that a group must have, no more and no fewer."""

    tensors: dict[str, Sizes]
    shared: Sizes = field(default_factory=dict)
    operations: int
    """Element operations that decoding the group takes, all of its tensors together; about a nanosecond each."""
    table: int = 0
    """Most numbers that the decoder holds at once beside streams and weights: codebooks, bases, generated tables."""
    steps: int = 0
    """Symbols that a loop in Python takes one by one; about a microsecond each. See `phase8.limits`."""


def size_of(shape: tuple[int, ...], name: str) -> int:
    """Returns the number of weights of a shape that a file claims.

    Raises:
        ArtifactError: an extent is no natural number, or the tensor is larger than any that this format holds.
    """
    ok = len(shape) <= MAX_DIMENSIONS and all(type(n) is int and 0 <= n <= MAX_TENSOR_WEIGHTS for n in shape)
    if not ok or math.prod(shape) > MAX_TENSOR_WEIGHTS:
        raise ArtifactError(f"{shape} is not a shape of at most {MAX_TENSOR_WEIGHTS:,} weights", where=name)
    return math.prod(shape)


def matrix_size(shape: tuple[int, ...], name: str) -> int:
    """As `size_of`, for a matrix [O, I] of at least one weight."""
    size = size_of(shape, name)
    if len(shape) != 2 or size == 0:
        raise ArtifactError(f"a matrix is needed, the shape is {shape}", where=name, fix="write the file anew")
    return size


def check_streams(streams: Mapping[str, Stream], sizes: Sizes, where: str) -> None:
    """Compares streams with their part of a layout.

    Raises:
        ArtifactError: one is missing or superfluous, has another length or width, or holds a value beyond its width.
    """
    if streams.keys() != sizes.keys():
        raise ArtifactError(f"needs the streams {sorted(sizes)}, has {sorted(streams)}", where=where)
    for role, (count, bits) in sizes.items():
        stream = streams[role]
        if stream.bits != bits or stream.values.shape != (count,) or stream.values.dtype.kind != "u":
            raise ArtifactError(f"the stream {role!r} must hold {count} integers of {bits} bits", where=where)
        if count and int(stream.values.max()) >> bits:
            raise ArtifactError(f"the stream {role!r} holds a value of more than {bits} bits", where=where)


def check_group(group: EncodedGroup, layout: Layout) -> None:
    """Compares a group with the layout that its settings and shapes ask for; raises as `check_streams`."""
    check_streams(group.shared, layout.shared, f"{group.codec} group")
    for name, tensor in group.tensors.items():
        check_streams(tensor.streams, layout.tensors[name], name)


def float16_values(bits: np.ndarray) -> np.ndarray:
    """uint16 bit patterns -> float32 values, 1-D."""
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)


def bfloat16_values(bits: np.ndarray) -> np.ndarray:
    """uint16 bit patterns -> float32 values, 1-D."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def finite(values: np.ndarray, where: str) -> np.ndarray:
    """Returns `values`, having made sure that they are numbers.

    Raises:
        ArtifactError: a NaN or an infinity is among them.
    """
    # A NaN passes through both sums of extremes; two reductions need no array beside the values.
    if values.size and not (np.isfinite(values.max()) and np.isfinite(values.min())):
        raise ArtifactError("a stored number is NaN or infinite", where=where, fix="write the file anew")
    return values
