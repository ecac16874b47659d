"""Polynomial and Fourier series over the weights of a block, by least squares."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from phase8.codecs.base import (
    EncodedGroup,
    Progress,
    Trainable,
    round_through,
)
from phase8.codecs.hyper.coding import (
    STEP_TRIALS,
    blocks,
    exponent_of,
    group_of,
    half_through,
    quantise,
    shapes_of,
    whole,
    with_coefficients,
)
from phase8.codecs.hyper.decode import (
    Settings,
    rows,
    scale_of,
)
from phase8.codecs.hyper.settings import Axis, HyperConfig, Trajectory
from phase8.codecs.matrices import Matrix, size_of


def encode_series(
    taken: dict[str, Matrix],
    config: HyperConfig,
    on_progress: Progress | None,
    known: Mapping[str, np.ndarray | None] | None = None,
) -> EncodedGroup:
    """Fits a series to every block; see `HyperCodec.encode`.

    Args:
        known: coefficients of matrices that are not coded in blocks (`encode_depth`); None for one that stores none.
    """
    top = (1 << (config.coefficient_bits - 1)) - 1
    real = {}
    for name, matrix in taken.items():
        if known is not None and name in known:
            if known[name] is not None:
                real[name] = known[name]
            if on_progress is not None:
                on_progress(size_of(matrix))
            continue
        length = config.block_size or size_of(matrix)
        basis_DN = basis_of(config.trajectory_type, config.degree, length).astype(np.float64)
        x_BN = blocks(whole(matrix), length).double().numpy()
        # The rows are orthonormal but for their rounding to the grid: one small symmetric system puts that right.
        real[name] = np.linalg.solve(basis_DN @ basis_DN.T, basis_DN @ x_BN.T).T if x_BN.size else np.zeros((0, 1))
        if on_progress is not None:
            on_progress(size_of(matrix))
    largest = {name: float(np.abs(c).max(initial=0.0)) / top for name, c in real.items()}
    exponent = exponent_of(largest.values())
    settings = config.stored(shapes_of(taken), exponent=exponent)
    codes, scales = {}, {}
    for name, c in real.items():
        # A plane of 16 bits is to hold its largest coefficient too, which a float16 rounded down does not reach.
        fullest = STEP_TRIALS if config.axis is Axis.block else np.append(STEP_TRIALS, 1 + 2.0**-10)
        q, scales[name] = quantise(c, largest[name], exponent, top, trials=fullest)
        codes[name] = q.astype(np.int64).reshape(-1) + top
    return group_of("hyper", settings, shapes_of(taken), "coefficients", codes, config.coefficient_bits, scales, {})


class TrainableSeries(Trainable):
    """Coefficients in units of the step, [B, D], rounded straight-through; a gain near 1 on each tensor's step."""

    def __init__(self, group: EncodedGroup, config: Settings) -> None:
        super().__init__()
        self._group, self._exponent = group, config.exponent
        self._top = (1 << (config.coefficient_bits - 1)) - 1
        self.coefficients, self.step_gain = nn.ParameterList(), nn.ParameterList()
        self._basis_of: list[str] = []
        for n, (name, tensor) in enumerate(group.tensors.items()):
            length = config.block_size or max(math.prod(tensor.shape), 1)
            basis_name = f"_basis_{length}"
            if not hasattr(self, basis_name):
                basis = basis_of(config.trajectory_type, config.degree, length)
                self.register_buffer(basis_name, torch.from_numpy(basis))
            self._basis_of.append(basis_name)
            stored = tensor.streams["coefficients"].values.astype(np.int64) - self._top
            shape = (-1, len(getattr(self, basis_name))) if stored.size else (0, len(getattr(self, basis_name)))
            self.coefficients.append(nn.Parameter(torch.from_numpy(stored).float().reshape(shape)))
            self.step_gain.append(nn.Parameter(torch.ones(1)))
            self.register_buffer(f"_step_{n}", torch.tensor([float(scale_of(tensor, name))]))

    def _stored(self, n: int) -> tuple[Tensor, Tensor]:
        q = self.coefficients[n]
        step = half_through(getattr(self, f"_step_{n}") * self.step_gain[n])
        return round_through(q, q.round().clamp(-self._top, self._top)), step

    def weights(self) -> dict[str, Tensor]:
        result = {}
        for n, (name, tensor) in enumerate(self._group.tensors.items()):
            q_BD, step = self._stored(n)
            values = (q_BD @ getattr(self, self._basis_of[n])) * (step * 2.0**self._exponent)
            result[name] = values.reshape(-1)[: math.prod(tensor.shape)].reshape(tensor.shape)
        return result

    def export(self) -> EncodedGroup:
        return with_coefficients(self._group, [self._stored(n) for n in range(len(self.coefficients))], self._top)


def basis_of(trajectory: Trajectory, degree: int, length: int) -> np.ndarray:
    """The rows of a series over so many positions, float32 [T, N]."""
    return np.stack(list(rows(trajectory, degree, max(length, 1))))
