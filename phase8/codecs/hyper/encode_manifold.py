"""The manifold of a seeded network: inputs and amplitude of every block."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from phase8.codecs.base import (
    EncodedGroup,
    Progress,
    Trainable,
    round_through,
)
from phase8.codecs.hyper import manifold_search
from phase8.codecs.hyper.coding import (
    blocks,
    exponent_of,
    group_of,
    half_through,
    quantise,
    rms,
    shapes_of,
    whole,
    with_coefficients,
)
from phase8.codecs.hyper.decode import (
    Settings,
    scale_of,
)
from phase8.codecs.hyper.settings import HyperConfig
from phase8.codecs.matrices import Matrix, size_of


def encode_manifold(
    taken: dict[str, Matrix],
    config: HyperConfig,
    on_progress: Progress | None,
) -> EncodedGroup:
    """Searches the inputs and fits the amplitude of every block; see `HyperCodec.encode`."""
    top = (1 << (config.coefficient_bits - 1)) - 1
    network = manifold_search.Network(config)
    inputs, amplitudes, energies = {}, {}, {}
    with torch.no_grad():
        for name, matrix in taken.items():
            x_BN = blocks(whole(matrix), config.block_size)
            inputs[name] = manifold_search.search(x_BN / (rms(matrix) or 1.0), config)
            out_BN = network(inputs[name])
            energies[name] = out_BN.square().sum(1).double().numpy()
            amplitudes[name] = (x_BN * out_BN).sum(1).double().numpy() / np.maximum(energies[name], 1e-30)
            if on_progress is not None:
                on_progress(size_of(matrix))
    largest = {name: float(np.abs(a).max(initial=0.0)) / top for name, a in amplitudes.items()}
    settings = config.stored(shapes_of(taken), exponent=exponent_of(largest.values()))
    codes, scales = {}, {}
    for name, a in amplitudes.items():
        q, scales[name] = quantise(a, largest[name], settings["exponent"], top, energies[name])
        codes[name] = np.concatenate([inputs[name].numpy(), q[:, None]], axis=1).astype(np.int64).reshape(-1) + top
    return group_of("hyper", settings, shapes_of(taken), "coefficients", codes, config.coefficient_bits, scales, {})


class TrainableManifold(Trainable):
    """Inputs and amplitude of every block in units of their codes, [B, K + 1]; a gain near 1 on each tensor's scale."""

    relative_step = 0.01

    def __init__(self, group: EncodedGroup, config: Settings) -> None:
        super().__init__()
        self._group, self._exponent = group, config.exponent
        self._top = (1 << (config.coefficient_bits - 1)) - 1
        self._network = manifold_search.Network(config)
        self.coefficients, self.scale_gain = nn.ParameterList(), nn.ParameterList()
        for n, (name, tensor) in enumerate(group.tensors.items()):
            stored = tensor.streams["coefficients"].values.astype(np.int64) - self._top
            self.coefficients.append(nn.Parameter(torch.from_numpy(stored).float().reshape(-1, config.inputs + 1)))
            self.scale_gain.append(nn.Parameter(torch.ones(1)))
            self.register_buffer(f"_scale_{n}", torch.tensor([float(scale_of(tensor, name))]))

    def _stored(self, n: int) -> tuple[Tensor, Tensor]:
        q = self.coefficients[n]
        scale = half_through(getattr(self, f"_scale_{n}") * self.scale_gain[n])
        return round_through(q, q.round().clamp(-self._top, self._top)), scale

    def weights(self) -> dict[str, Tensor]:
        result = {}
        for n, (name, tensor) in enumerate(self._group.tensors.items()):
            q_BK, scale = self._stored(n)
            values = self._network(q_BK[:, :-1]) * q_BK[:, -1:] * (scale * 2.0**self._exponent)
            result[name] = values.reshape(-1)[: math.prod(tensor.shape)].reshape(tensor.shape)
        return result

    def export(self) -> EncodedGroup:
        return with_coefficients(self._group, [self._stored(n) for n in range(len(self.coefficients))], self._top)
