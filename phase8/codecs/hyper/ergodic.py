"""The ergodic winding: one integer theta stands for K weights (Hyper-Compression, arXiv 2409.00592).

The line {t a mod 1} with rationally independent a_k comes arbitrarily near every point of the unit cube. Its integer
points i = 1 .. U are a codebook of zero bytes. With the centroid C, the cube's side l and a shrink s_m per class:

    theta = m (U + 1) + i,   m = theta // (U + 1),   i = theta mod (U + 1)
    T_0 = C,   T_i = ((i - 1) a mod l) + C - l/2,    w = scale * (C + (T_i - C) / s_m)

`scale` is ours, one per tensor (1 in the published form), so that all tensors of a group can share C, l and s. The
published side is K = 2 and a = (l / sqrt(U), l) / sqrt(U): a sheared sqrt(U) x sqrt(U) grid. Three directions are
offered, in units of l (`Winding`):

    power       a_k = U^(-(K-k)/K), k = 0 .. K-1: the published direction at K = 2, a sheared grid in K dimensions
    reciprocal  a_k = 1 / (pi + k): the paper's example of a rationally independent direction
    primes      a_k = sqrt(k-th prime): rationally independent too, and far from equal for neighbouring k

Measured (experiments/trajectories.py): at K = 2 `power` covers best; at K = 12 `reciprocal` and `primes` are
equal and well ahead of `power`, which has only two points per axis there; from K = 64 `primes` is ahead of both,
because neighbouring a_k of the other two are nearly equal.

Positions are exact: a is held in 64-bit fixed point and i a mod 1 is integer arithmetic, so every machine gets the same
bits. Deviation from the published encoder: it assigns a point to a class by its radius; here all classes compete and
the nearest point wins: 0.029 instead of 0.0365 relative root mean square at the published settings on Gaussian weights.

Example, K = 2, U = 4, power: a = (1/4, 1/2); i = 3 gives (2/4, 2/2) mod 1 = (0.5, 0); with l = 2 and C = (0, 0),
T_3 = (0, -1).
"""

from __future__ import annotations

import math

import faiss
import numpy as np
import torch
from torch import Tensor

from phase8.codecs.hyper.settings import Winding
from phase8.codecs.hyper.winding import offsets, steps

_SAMPLE_WEIGHTS = 1 << 16
"""Weights on which a cube's side is chosen."""


def shrinks(side: float, farthest: float, classes: int, dims: int) -> np.ndarray:
    """Returns s_1 .. s_M, float32 [M]: (l/2) / (l/2 + m (l_f - l/2) / M).

    In more than two dimensions most of a cube lies beyond l/2 of its centre, so l/2 becomes (l/2) sqrt(K/2), which is
    the published value at K = 2 and stays near the typical radius of the cube's points.
    """
    inner = side / 2 * math.sqrt(dims / 2)
    m = np.arange(1, classes + 1)
    return (inner / (inner + m * max(farthest - inner, 0.0) / max(classes, 1))).astype(np.float32)


def codebook(
    dims: int, grid: int, winding: Winding, centroid: np.ndarray, side: float, shrink: np.ndarray
) -> np.ndarray:
    """Returns every point before `scale`, float32 [(M+1)(U+1), K], in the order of theta."""
    base = offsets(np.arange(grid + 1), steps(dims, grid, winding))
    return np.concatenate([centroid + base * np.float32(np.float32(side) / s) for s in [np.float32(1), *shrink]])


def search(points: np.ndarray) -> faiss.IndexFlatL2:
    """The index in which `nearest` looks for float32 [Q, K]."""
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    return index


def nearest(index: faiss.IndexFlatL2, x_NK: Tensor) -> Tensor:
    """Returns the number of the nearest point of `search` to each row of float32 [N, K]; int64 [N].

    Exhaustive search: of the points at equal distance, rounding decides, the same way each time.
    """
    return torch.from_numpy(index.search(x_NK.contiguous().numpy(), 1)[1].reshape(-1))


def sampled(count: int, dims: int, seed: int) -> Tensor:
    """Which of `count` rows of K weights `choose_side` looks at: int32 [N], all of them where they are few."""
    wanted = min(8192, max(256, _SAMPLE_WEIGHTS // dims))
    if count <= wanted:
        return torch.arange(count, dtype=torch.int32)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator, dtype=torch.int32)[:wanted].clone()


def choose_side(
    sample_NK: Tensor, centroid: np.ndarray, farthest: float, *, grid: int, classes: int, winding: Winding
) -> tuple[float, np.ndarray]:
    """Picks the cube's side by trial on a sample: seven sides a factor 1.6 apart, then four between the best ones.

    Args:
        sample_NK: float32 [N, K], weights in units of their tensor's root mean square.
        farthest: the largest distance of any row, of the sample or not, from the centroid.

    Returns:
        side in the same units, and the classes' shrinks float32 [M].
    """
    dims = sample_NK.shape[1]
    if not len(sample_NK):
        return 1.0, np.ones(classes, dtype=np.float32)
    tried: dict[float, float] = {}

    def error(side: float) -> float:
        points = codebook(dims, grid, winding, centroid, side, shrinks(side, farthest, classes, dims))
        chosen = torch.from_numpy(points)[nearest(search(points), sample_NK)]
        energy = float((chosen * chosen).sum())
        return -(float((sample_NK * chosen).sum()) ** 2) / energy if energy > 0 else 0.0  # after the best scale

    for side in 0.75 * 1.6 ** np.arange(7.0):
        tried[side] = error(side)
    best = min(tried, key=lambda side: tried[side])
    for factor in (1.6**-0.6, 1.6**-0.3, 1.6**0.3, 1.6**0.6):
        tried[best * factor] = error(best * factor)
    side = min(tried, key=lambda side: tried[side])
    return float(side), shrinks(float(side), farthest, classes, dims)
