"""What a codec takes and gives.

A codec turns a *group* of weight matrices into integer streams and back. A group is whatever shares parameters: a
single matrix, all matrices of one kind, or the whole model (one codebook for all layers). Codecs are pure: tensors in,
streams out, the same streams for the same input and seed; no files, no logging, no global state.

Shape legend: O output rows, I input columns of a matrix as in `nn.Linear.weight` [O, I]; an embedding is [V, H].

`Codec.decode` is plain numpy with element-wise float32 arithmetic only (no BLAS, whose summation order differs between
machines), so that every reader gets the same bits; it lives in `phase8.codecs.decoders`, which needs no torch.
`Trainable.weights` is the same function in torch with gradients, used while the continuous parameters are trained.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from phase8.codecs.matrices import Matrix
from phase8.codecs.streams import JSON, EncodedGroup, EncodedTensor, Stream, float16_values

__all__ = [
    "JSON", "BudgetTrainable", "Codec", "EncodedGroup", "EncodedTensor", "Importance", "Priced", "Progress", "Stream",
    "Trainable", "float16_bits", "float16_values", "root_mean_square", "round_through",
]  # fmt: skip

Progress = Callable[[int], None]
"""Called with the number of weights finished since the last call."""


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


class BudgetTrainable(nn.Module):
    """What `phase8.train.within_budget` trains: all groups of a stage, with what their codes cost, and how to cost
    less."""

    steerable: bool = True
    """Whether a price of bits, or `cheapen`, changes the size."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """As `Trainable.weights`, of all groups."""

    @abstractmethod
    def groups(self) -> list[EncodedGroup]:
        """Returns the groups with the parameters and codes as they are now."""

    @abstractmethod
    def bits(self) -> Tensor:
        """Estimated size of the codes; where codes follow from parameters, differentiable in them."""

    @abstractmethod
    def coded_bits(self) -> float:
        """Their size as the real coder makes them, without writing them."""

    @abstractmethod
    def coded_bytes(self) -> int:
        """Bytes of the codes as they are written."""

    @abstractmethod
    def cheapen(self, strength: float) -> int:
        """Changes codes to cheaper ones, the more the greater `strength` (above 0); returns how many changed."""

    def choose_again(self, step: int, steps: int, nats_per_bit: float) -> None:
        """After step `step` of `steps`: may choose codes anew for the parameters as they are now, at this price."""

    def finer(self, start_step: float, room_bytes: int) -> float:
        """How much finer the codes are, or have to be for the room, than steps of `start_step` deviations: a factor, at
        most 1."""
        return 1.0

    def refine(self, start_step: float, room_bytes: int) -> float:
        """Suits the codes to the room before a first training, where they can be; returns the factor."""
        return self.finer(start_step, room_bytes)

    def highest_steps(self, lr: float, steps: int) -> list[float]:
        """Adam's highest step of every parameter, in the order of `parameters()`, from the values as they are.

        Args:
            steps: of the training.
        """
        return [lr * root_mean_square(parameter) for parameter in self.parameters()]

    def codes(self) -> dict[str, Tensor]:
        """What is not a parameter and changes in training, for checkpoints."""
        return {}

    def load_codes(self, codes: Mapping[str, Tensor]) -> None:
        """Puts back what `codes` gave; the parameters are there already."""


def root_mean_square(values: Tensor) -> float:
    """Of all elements; 1 where they are all zero."""
    return float(values.detach().float().square().mean().sqrt()) or 1.0


class Codec(Protocol):
    """A lossy coder of weight matrices."""

    name: str

    def encode(
        self,
        weights: Mapping[str, Tensor | Matrix],
        config: Any,
        *,
        importance: Mapping[str, Importance],
        seed: int,
        on_progress: Progress | None = None,
    ) -> EncodedGroup:
        """Encodes matrices [O, I] of any size, in memory or read in parts (`phase8.codecs.matrices`).

        `importance` may lack names; then all weights count alike.

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


@runtime_checkable
class Priced(Protocol):
    """A codec whose codes cost different numbers of bits, and that can choose them by distance and price together."""

    def choose_again(
        self, group: EncodedGroup, weights: Mapping[str, Tensor], price: float, *, cheaper: float | None = None
    ) -> EncodedGroup:
        """The group with codes chosen for these weights; settings, shapes and continuous parameters stay.

        Args:
            weights: of every matrix of the group, float32 [O, I].
            price: of a bit, in units of a code's squared error where the weights' mean square is 1; 0 asks for the
                nearest codes.
            cheaper: codes change to ones of fewer bits alone, and of these changes this share is made, the ones that
                gain most at the price.

        Raises:
            CodecError: codes of these settings cannot be chosen again.
        """


def round_through(x: Tensor, rounded: Tensor) -> Tensor:
    """Straight-through estimator: the value of `rounded`, the gradient of `x` (Bengio et al. 2013, section 4)."""
    return x + (rounded - x).detach()


def float16_bits(x: np.ndarray | Tensor) -> np.ndarray:
    """float values -> uint16 bit patterns of their float16 rounding, 1-D."""
    array = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x
    return np.ascontiguousarray(array, dtype=np.float32).astype(np.float16).reshape(-1).view(np.uint16)
