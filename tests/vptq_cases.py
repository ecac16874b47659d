"""Settings, weights and Hessians that the tests of VPTQ share."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from phase8.codecs.base import EncodedGroup, Importance
from phase8.codecs.vptq.encode import VPTQCodec
from phase8.config import VPTQConfig

published = partial(VPTQConfig, num_codebooks=2, codebook_bits=16, hessian_damping=0.01)
"""The paper's settings; the defaults of a run are others."""
SMALL = published(vector_dim=4, codebook_size=16, num_codebooks=2, kmeans_iterations=5)


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def correlated_hessian(columns: int, seed: int = 0, tokens: int = 500) -> torch.Tensor:
    """Second moment of inputs that share a few directions and differ in size, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 4, columns, generator=generator)
    x = torch.randn(tokens, columns // 4, generator=generator) @ mixing
    x = x + torch.randn(tokens, columns, generator=generator)
    x = x * torch.exp(torch.randn(columns, generator=generator) / 2)
    return x.T @ x / tokens


def encode(
    weight: torch.Tensor, config: VPTQConfig = SMALL, seed: int = 0, **importance: torch.Tensor | None
) -> EncodedGroup:
    return VPTQCodec().encode({"w": weight}, config, importance={"w": Importance(**importance)}, seed=seed)


OUTLIERS = replace(SMALL, outlier_columns=0.1, outlier_vector_dim=2, outlier_codebook_size=32)


def dense_loop(
    weight: np.ndarray, hessian: np.ndarray, row: np.ndarray, damping: float, books: list[np.ndarray]
) -> list[np.ndarray]:
    """The second-order loop as Optimal Brain Surgeon states it: one matrix inverse per column, all in float64.

    Returns the index of each part of a vector [G Q, I], per codebook [Q, K, U].
    """
    rows, columns = weight.shape
    product, _, u = books[0].shape
    v = product * u
    hessian = hessian / np.mean(np.diag(hessian)) + damping * np.eye(columns)
    order = sorted(range(columns), key=lambda j: -hessian[j, j])
    vectors = -(-rows // v)
    w = np.zeros((vectors * v, columns))
    w[:rows] = weight
    r = np.zeros(vectors * v)
    r[:rows] = row
    chosen = [np.zeros((vectors * product, columns), dtype=np.int64) for _ in books]
    left = list(order)
    for q in order:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        coded = np.zeros(vectors * v)
        for g in range(vectors * product):
            part = slice(g * u, (g + 1) * u)
            for m, book in enumerate(books):
                entries = book[g % product]
                distance = (r[part] * (w[part, q] - coded[part] - entries) ** 2).sum(axis=1)
                chosen[m][g, q] = distance.argmin()
                coded[part] += entries[chosen[m][g, q]]
        # The column that is coded stands first in `left`.
        w[:, left] -= np.outer((w[:, q] - coded) / inverse[0, 0], inverse[0])
        left.pop(0)
    return chosen
