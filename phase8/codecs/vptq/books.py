"""Fits a group's codebooks by weighted k-means, and stores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from phase8.codecs.base import (
    JSON,
    Stream,
    float16_bits,
)
from phase8.codecs.vptq.decode import (
    EIGHT_BIT_OFFSET,
    settings_of,
)
from phase8.codecs.vptq.kmeans import kmeans
from phase8.codecs.vptq.matrix import SMALLEST_FLOAT16, Prepared
from phase8.codecs.vptq.settings import VPTQConfig

FITTED_VECTORS = 1 << 19
"""Vectors that codebooks are fitted to, where there are more: 512 for each of 1024 entries; larger codebooks get 32 for
each."""


class Fit:
    """Fits a group's codebooks one after the other, and knows how they are stored."""

    def __init__(self, config: VPTQConfig, matrices: list[Prepared], seed: int) -> None:
        self._config, self._matrices = config, matrices
        self._generator = np.random.default_rng(seed)
        self._streams: dict[str, dict[str, Stream]] = {}
        self.settings: dict[str, JSON] = config.stored({str(n): m.shape for n, m in enumerate(matrices)})
        self.books = settings_of(self.settings).books()

    def learn(self, role: str, left: Sequence[Tensor] = ()) -> Tensor:
        """Fits the codebook of this role, float32 [Q, K, U] as a reader decodes it, and notes its streams.

        Args:
            role: a key of `books`.
            left: of every matrix, what the codebooks before left over of the columns that are no outliers, [I - T, P];
                nothing if there are none before.
        """
        product, size, u = self.books[role]
        v = product * u
        most = max(FITTED_VECTORS, 32 * size)
        runs = []
        for number, m in enumerate(self._matrices):
            columns = slice(0, m.outliers) if role == "outlier_codebook" else slice(m.outliers, m.shape[1])
            take = partial(m.vectors, first=columns.start, length=v)
            if left:
                take = partial(torch.index_select, left[number].view(-1, v), 0)
            runs.append((take, m.diagonal_I[columns], m.row_mass(v, product)))
        x_NV, mass_NQ = self._drawn(runs, v, most)
        parts = [
            (np.ascontiguousarray(x_NV[:, q * u : (q + 1) * u]), np.ascontiguousarray(mass_NQ[:, q]))
            for q in range(product)
        ]
        entries = [
            kmeans(
                x_NU, size, iterations=self._config.kmeans_iterations, generator=self._generator, weights_N=mass_N
            ).centroids_KD
            for x_NU, mass_N in parts
        ]
        values, self._streams[role] = round_codebook(torch.from_numpy(np.stack(entries)), self._config.codebook_bits)
        return values

    @property
    def streams(self) -> dict[str, Stream]:
        """The streams of all codebooks, in the order of `books`."""
        return {role + suffix: stream for role in self.books for suffix, stream in self._streams[role].items()}

    def _drawn(
        self, runs: list[tuple[Callable[[Tensor], Tensor], Tensor, Tensor]], length: int, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """About `most` of all vectors, evenly spread, or all where there are no more: [N, V], and weights [N, Q].

        Args:
            runs: of every matrix what gives its vectors by their places, column by column; the columns' factor in their
                weights [I], and the rows' [G, Q].
            length: V.
        """
        counts = [len(diagonal_I) * len(row_GQ) for _, diagonal_I, row_GQ in runs]
        count = sum(counts)
        if count <= most:
            places = np.arange(count)
        else:  # one from each of `most` stretches of equal length: no period of the matrix can fall in with them
            places = ((np.arange(most) + self._generator.random(most)) * (count / most)).astype(np.int64)
            places = np.unique(np.minimum(places, count - 1))
        x_NV = torch.empty(len(places), length)
        mass_NQ = torch.empty(len(places), runs[0][2].shape[1])
        begin = 0
        for (take, diagonal_I, row_GQ), own_count in zip(runs, counts, strict=True):
            first, end = np.searchsorted(places, (begin, begin + own_count))
            own = torch.from_numpy(places[first:end] - begin)
            x_NV[first:end] = take(own)
            torch.mul(diagonal_I[own // len(row_GQ), None], row_GQ[own % len(row_GQ)], out=mass_NQ[first:end])
            begin += own_count
        return x_NV.numpy(), mass_NQ.numpy()


def round_codebook(entries: Tensor, bits: int) -> tuple[Tensor, dict[str, Stream]]:
    """Returns entries as a reader decodes them, float32, and their streams by the suffix to the codebook's role."""
    entries = entries.detach()
    if bits == 16:
        values = entries.half().float()
        return values, {"": Stream(values=float16_bits(values), bits=16)}
    step = (entries.abs().max() / 127).half().float()
    codes = (entries / step.clamp_min(SMALLEST_FLOAT16)).round().clamp(-127, 127)
    stored = (codes + EIGHT_BIT_OFFSET).reshape(-1).to(torch.uint8).cpu().numpy()
    return codes * step, {
        "": Stream(values=stored, bits=8),
        "_step": Stream(values=float16_bits(np.array([float(step)])), bits=16),
    }
