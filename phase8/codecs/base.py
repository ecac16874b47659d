"""What a codec takes and gives.

A codec turns a *group* of weight matrices into integer streams and back. A group is whatever shares parameters: a
single matrix, all matrices of one kind, or the whole model (one codebook for all layers). Codecs are pure: tensors in,
streams out, the same streams for the same input and seed; no files, no logging, no global state.

Shape legend: O output rows, I input columns of a matrix as in `nn.Linear.weight` [O, I]; an embedding is [V, H].

Two decoders exist on purpose. `Codec.decode` is plain numpy with element-wise float32 arithmetic only (no BLAS, whose
summation order differs between machines), so that every reader gets the same bits. `Trainable.weights` is the same
function in torch with gradients, used while the continuous parameters are trained.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

JSON = int | float | str | bool | list["JSON"] | None
Progress = Callable[[int], None]
"""Called with the number of weights finished since the last call."""


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

    def packed_bits(self) -> int:
        """Bits of all streams in plain packing, before entropy coding and without the manifest."""
        own = [s for t in self.tensors.values() for s in t.streams.values()]
        return sum(s.bits * s.values.size for s in [*self.shared.values(), *own])


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """How much an error in each weight of one matrix matters, measured on calibration text."""

    hessian_II: Tensor | None = None
    """float32 [I, I]: mean over calibration tokens of x x^T, x the layer's input."""
    row_O: Tensor | None = None
    """float32 [O], mean 1: weight of each output row (token frequency for an embedding)."""


class Trainable(nn.Module):
    """The continuous parameters of an encoded group as `nn.Parameter`s; the discrete codes as buffers."""

    relative_step: float = 0.05
    """Adam's highest step as a fraction of a parameter tensor's root mean square. The fewer weights hang on one
    parameter, the smaller it has to be."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Returns every matrix of the group, float32 [O, I], differentiable in this module's parameters.

        Parameters are rounded to their stored precision in the forward pass (straight-through), so the values equal
        `decode(self.export())` up to float32 rounding (relative 1e-5).
        """

    @abstractmethod
    def export(self) -> EncodedGroup:
        """Returns the group with the parameters as they are now."""


class Codec(Protocol):
    """A lossy coder of weight matrices."""

    name: str

    def encode(
        self,
        weights: Mapping[str, Tensor],
        config: Any,
        *,
        importance: Mapping[str, Importance],
        seed: int,
        on_progress: Progress | None = None,
    ) -> EncodedGroup:
        """Encodes float32 matrices [O, I] of any size. `importance` may lack names; then all weights count alike.

        Raises:
            CodecError: settings that cannot hold these shapes; NaN or infinite weights.
        """

    def decode(self, group: EncodedGroup) -> dict[str, np.ndarray]:
        """Returns every matrix, float32 [O, I], C-contiguous.

        Raises:
            ArtifactError: streams that do not fit the shapes or settings (wrong length, value out of range). The input
                may come from a hostile file: check before allocating more than the shapes justify.
        """

    def trainable(self, group: EncodedGroup) -> Trainable:
        """Returns the group's continuous parameters as a module."""


def round_through(x: Tensor, rounded: Tensor) -> Tensor:
    """Straight-through estimator: the value of `rounded`, the gradient of `x` (Bengio et al. 2013, section 4)."""
    return x + (rounded - x).detach()


def float16_bits(x: np.ndarray | Tensor) -> np.ndarray:
    """float values -> uint16 bit patterns of their float16 rounding, 1-D."""
    array = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x
    return np.ascontiguousarray(array, dtype=np.float32).astype(np.float16).reshape(-1).view(np.uint16)


def float16_values(bits: np.ndarray) -> np.ndarray:
    """uint16 bit patterns -> float32 values, 1-D."""
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)
