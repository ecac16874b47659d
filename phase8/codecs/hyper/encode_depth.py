"""Series over the layers: planes for the stacks of a group; the rest of the group is in blocks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from phase8.codecs.base import (
    EncodedGroup,
    Trainable,
    round_through,
)
from phase8.codecs.hyper.coding import (
    half_through,
    shapes_of,
    whole,
    with_coefficients,
)
from phase8.codecs.hyper.decode import (
    Settings,
    over_depth,
    scale_of,
    stacks,
)
from phase8.codecs.hyper.encode_series import TrainableSeries
from phase8.codecs.hyper.settings import HyperConfig
from phase8.codecs.matrices import Matrix, size_of
from phase8.errors import ArtifactError, CodecError


def planes_of(taken: dict[str, Matrix], config: HyperConfig) -> dict[str, np.ndarray | None]:
    """Coefficients of every matrix that is in a stack: a plane, or None for members that carry none.

    Raises:
        CodecError: a stack is too deep.
    """
    try:
        places = stacks(config, shapes_of(taken))
    except ArtifactError as error:
        raise CodecError(error.what, where=error.where, fix="set hyper.axis=block") from error
    found: dict[str, np.ndarray | None] = dict.fromkeys(places)
    for names, place in places.values():
        if place == 0:
            found |= planes({name: taken[name] for name in names}, config)
    return found


def planes(members: dict[str, Matrix], config: HyperConfig) -> dict[str, np.ndarray]:
    """Coefficients of a stack's weights, float64 [O I] a plane, under the name of the member that carries it."""
    basis_TL = over_depth(config.trajectory_type, config.degree, len(members)).astype(np.float64)
    inverse_TL = np.linalg.solve(basis_TL @ basis_TL.T, basis_TL)
    found = {}
    for name, inverse_L in zip(members, inverse_TL, strict=False):
        found[name] = np.zeros(size_of(members[name]))
        for factor, matrix in zip(inverse_L, members.values(), strict=True):
            found[name] += factor * whole(matrix).numpy()
    return found


class TrainableDepth(Trainable):
    """Coefficients of every plane in units of its step, [O I], and a gain near 1 on the step; `TrainableSeries` for
    the matrices in blocks."""

    relative_step = 0.003

    def __init__(self, group: EncodedGroup, config: Settings) -> None:
        super().__init__()
        self._group, self._exponent = group, config.exponent
        self._top = (1 << (config.coefficient_bits - 1)) - 1
        self._places = stacks(config, group.shapes)
        alone = {name: tensor for name, tensor in group.tensors.items() if name not in self._places}
        self.alone = TrainableSeries(replace(group, tensors=alone), config)
        self.coefficients, self.step_gain = nn.ParameterList(), nn.ParameterList()
        self._plane_of: dict[str, int] = {}
        for name, (names, place) in self._places.items():
            basis_TL = over_depth(config.trajectory_type, config.degree, len(names))
            if not hasattr(self, f"_basis_{len(names)}"):
                self.register_buffer(f"_basis_{len(names)}", torch.from_numpy(basis_TL.copy()))
            if place < len(basis_TL):
                n = self._plane_of[name] = len(self._plane_of)
                stored = group.tensors[name].streams["coefficients"].values.astype(np.int64) - self._top
                self.coefficients.append(nn.Parameter(torch.from_numpy(stored).float()))
                self.step_gain.append(nn.Parameter(torch.ones(1)))
                self.register_buffer(f"_step_{n}", torch.tensor([float(scale_of(group.tensors[name], name))]))

    def _stored(self, n: int) -> tuple[Tensor, Tensor]:
        q = self.coefficients[n]
        step = half_through(getattr(self, f"_step_{n}") * self.step_gain[n])
        return round_through(q, q.round().clamp(-self._top, self._top)), step

    def weights(self) -> dict[str, Tensor]:
        result = self.alone.weights()
        for name, (names, place) in self._places.items():
            if place == 0:
                basis_TL = getattr(self, f"_basis_{len(names)}")
                planes = [self._stored(self._plane_of[member]) for member in names[: len(basis_TL)]]
                plane_TN = torch.stack([q * (step * 2.0**self._exponent) for q, step in planes])
                shape = self._group.tensors[name].shape
                result |= zip(names, (basis_TL.T @ plane_TN).reshape(len(names), *shape), strict=True)
        return {name: result[name] for name in self._group.tensors}

    def export(self) -> EncodedGroup:
        planes = {name: self._group.tensors[name] for name in self._plane_of}
        stored = [self._stored(n) for n in self._plane_of.values()]
        exported = with_coefficients(replace(self._group, tensors=planes), stored, self._top).tensors
        exported = {**self._group.tensors, **exported, **self.alone.export().tensors}
        return replace(self._group, tensors=exported)
