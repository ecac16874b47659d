"""Finds the inputs of the manifold's network whose block points most nearly in a given direction.

Of a block x, the network's output o(q) can express the share (x . o)^2 / (|x|^2 |o|^2): the amplitude does the rest.
With at most 2^16 different inputs all of them are tried. Else 2^12 of them, drawn by a fixed seed, are tried; from the
best few each block goes on by coordinates: every input in turn is moved up and down by a step, the better kept, with
steps from a quarter of the range down to 1. Nothing depends on the other blocks, and nothing is random.

Shape legend: as in `manifold`, S tried inputs.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

from phase8.codecs.hyper import manifold
from phase8.codecs.hyper.settings import HyperConfig

_ALL = 1 << 16
_TRIED = 1 << 12
_STARTS = 2
_BLOCKS_AT_ONCE = 4096


class Network(nn.Module):
    """The seeded network in torch, differentiable in its inputs.

    Hidden layers are summed as `manifold` sums them, bit for bit: what they round differently, the next layers enlarge.
    """

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        self._depth, self._frequency = config.depth, config.frequency
        self._top = (1 << (config.coefficient_bits - 1)) - 1
        self._gain = float(np.float32(1 / math.sqrt(config.width)))
        firsts, rows = manifold.places(config.inputs, config.width, config.depth), config.inputs
        for layer, first in enumerate(firsts[:-1]):
            table = manifold.numbers(config.network_seed, first, (rows + 1) * config.width).reshape(-1, config.width)
            self.register_buffer(f"rows_{layer}", torch.from_numpy(table[:-1]), persistent=False)
            self.register_buffer(f"phase_{layer}", torch.from_numpy(table[-1] * np.float32(0.5)), persistent=False)
            rows = config.width
        out = manifold.numbers(config.network_seed, firsts[-1], (config.width + 1) * config.block_size)
        out = torch.from_numpy(out.reshape(config.width + 1, -1))
        self.register_buffer("out_HN", out[:-1] / math.sqrt(config.width), persistent=False)
        self.register_buffer("phase_N", out[-1] * 0.5, persistent=False)

    def forward(self, codes_BK: Tensor) -> Tensor:
        """Inputs in units of their codes -> directions [B, N]."""
        z = (codes_BK.double() * self._frequency / (16 * self._top)).float()
        for layer in range(self._depth):
            rows = getattr(self, f"rows_{layer}")
            total = torch.zeros(len(z), rows.shape[1], device=z.device)
            for i, row in enumerate(rows):
                total = total + z[:, i, None] * row
            if layer:
                total = total * self._gain
            z = _sine(total + getattr(self, f"phase_{layer}"))
        return _sine(z @ self.out_HN + self.phase_N)


def _sine(turns: Tensor) -> Tensor:
    """`manifold.sine`, differentiable."""
    r = turns - turns.round()
    v = r.abs()
    v = torch.minimum(v, 0.5 - v)
    y = v * v
    c1, c3, c5, c7, c9 = map(float, manifold.SINE)
    p = v * (c1 + y * (c3 + y * (c5 + y * (c7 + y * c9))))
    return torch.where(r < 0, -p, p)


def search(blocks_BN: Tensor, config: HyperConfig) -> Tensor:
    """Returns the inputs' codes of every block, float32 [B, K], whole numbers."""
    network = Network(config)
    top = (1 << (config.coefficient_bits - 1)) - 1
    levels = 2 * top + 1
    every = levels**config.inputs <= _ALL
    if every:
        tried = torch.tensor(list(itertools.product(range(-top, top + 1), repeat=config.inputs)), dtype=torch.float32)
    else:
        generator = torch.Generator().manual_seed(config.network_seed)
        tried = torch.randint(-top, top + 1, (_TRIED, config.inputs), generator=generator).float()
    unit_SN = nn.functional.normalize(network(tried), dim=1)
    found = []
    for x_BN in blocks_BN.split(_BLOCKS_AT_ONCE):
        score_BS = (x_BN @ unit_SN.T).abs()
        if every:
            found.append(tried[score_BS.argmax(1)])
            continue
        starts = score_BS.topk(_STARTS, dim=1).indices
        best_B, best_BK = torch.full((len(x_BN),), -1.0), tried[starts[:, 0]]
        for n in range(_STARTS):
            score_B, codes_BK = _descend(network, x_BN, tried[starts[:, n]].clone(), top)
            better = score_B > best_B
            best_B, best_BK = torch.where(better, score_B, best_B), torch.where(better[:, None], codes_BK, best_BK)
        found.append(best_BK)
    return torch.cat(found) if found else torch.zeros(0, config.inputs)


def _descend(network: Network, x_BN: Tensor, codes_BK: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Moves single inputs while that helps; returns scores [B] and codes [B, K]."""
    best_B = _score(network, x_BN, codes_BK)
    step = max(1, top // 4)
    while step >= 1:
        for i, sign in itertools.product(range(codes_BK.shape[1]), (1, -1)):
            moved_BK = codes_BK.clone()
            moved_BK[:, i] = (moved_BK[:, i] + sign * step).clamp_(-top, top)
            score_B = _score(network, x_BN, moved_BK)
            better = score_B > best_B
            best_B = torch.where(better, score_B, best_B)
            codes_BK = torch.where(better[:, None], moved_BK, codes_BK)
        step //= 2
    return best_B, codes_BK


def _score(network: Network, x_BN: Tensor, codes_BK: Tensor) -> Tensor:
    out_BN = network(codes_BK)
    return (x_BN * out_BN).sum(1).square() / out_BN.square().sum(1).clamp_min(1e-30)
