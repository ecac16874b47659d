"""Chooses the indices of vectors: the nearest, or the cheapest by distance and by what an index costs.

    index(x) = argmin_k  |x - c_k|^2 + price * length_k          length_k = -log2 of the share of index k, in bits

under the codebooks as they are. The lengths are those of the choice before, so a rare entry becomes rarer and the
entropy falls; the fixed point is that of entropy-constrained vector quantisation (Chou, Lookabaugh and Gray 1989,
section III). With several codebooks they are chosen one after the other, each for what the ones before left over.

Shape legend: as in `phase8.codecs.vptq.encode`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from phase8.codecs.streams import EncodedGroup, EncodedTensor, Stream
from phase8.codecs.vptq.decode import codebooks, parts, settings_of
from phase8.errors import CodecError
from phase8.lossless.bitpack import narrowest

SCORES_AT_ONCE = 1 << 18
"""Distances held in memory while entries are chosen: 1 MiB, which stays in a core's cache."""


class Chooser:
    """Picks the entries whose greedy sum is nearest to a vector.

    The nearest entry c to x under row weights r has the largest sum_i r_i (x_i c_i - c_i^2 / 2): one matrix product of
    (r x, r) with (c, -c^2 / 2). Where r is 1 throughout, the second half is a bias; it then also takes what an entry
    costs.

    Args:
        levels: codebooks, each float32 [Q, K, U].
        row_GV: weights of the rows, float32 [G, V]; None: all alike.
        prices: of every codebook, what each entry costs, in squared distance, float32 [K]; only without `row_GV`.
    """

    def __init__(
        self, levels: list[Tensor], row_GV: Tensor | None, prices: Sequence[Tensor | None] | None = None
    ) -> None:
        self._levels = levels
        self._row_GV = row_GV
        self._keys = [
            [
                c_KU.T.contiguous() if row_GV is None else torch.cat([c_KU, c_KU.square() / -2], dim=1).T.contiguous()
                for c_KU in level_QKU
            ]
            for level_QKU in levels
        ]
        self._bias = [level_QKU.square().sum(dim=2) / -2 for level_QKU in levels]
        if prices is not None:
            pairs = zip(self._bias, prices, strict=True)
            self._bias = [bias if price_K is None else bias - price_K / 2 for bias, price_K in pairs]
        self._chunk = max(1, SCORES_AT_ONCE // max(level_QKU.shape[1] for level_QKU in levels))

    def choose(self, x_NV: Tensor, index_MNQ: np.ndarray, left_NV: Tensor | None = None) -> None:
        """Writes the index of every codebook and, where it is wanted, x - sum of the entries; the latter may be x.

        N is a multiple of G.
        """
        for start in range(0, len(x_NV), self._chunk):
            part = slice(start, start + self._chunk)
            left_CV = x_NV[part]
            row_CV = None
            if self._row_GV is not None:
                row_CV = self._row_GV[torch.arange(start, start + len(left_CV)) % len(self._row_GV)]
            for m, level_QKU in enumerate(self._levels):
                more = m + 1 < len(self._levels) or left_NV is not None
                rest = []
                for q, c_KU in enumerate(level_QKU):
                    own = slice(q * c_KU.shape[1], (q + 1) * c_KU.shape[1])
                    x_CU = left_CV[:, own]
                    if row_CV is None:
                        score = torch.addmm(self._bias[m][q], x_CU, self._keys[m][q])
                    else:
                        score = torch.cat([x_CU * row_CV[:, own], row_CV[:, own]], dim=1) @ self._keys[m][q]
                    # numpy's argmax is three times as fast as torch's on rows this short.
                    index = score.numpy().argmax(axis=1)
                    index_MNQ[m, part, q] = index
                    if more:
                        rest.append(x_CU - c_KU[torch.from_numpy(index)])
                left_CV = torch.cat(rest, dim=1) if len(rest) > 1 else rest[0] if rest else left_CV
            if left_NV is not None:
                left_NV[part] = left_CV


def choose_again(
    group: EncodedGroup, weights: Mapping[str, Tensor], price: float, *, cheaper: float | None = None
) -> EncodedGroup:
    """The group with indices for these weights; see `phase8.codecs.base.Priced`.

    Raises:
        CodecError: the group has outlier columns, which are not chosen again.
    """
    settings = settings_of(group.settings)
    if settings.share:
        raise CodecError(
            "indices of outlier columns cannot be chosen again", where="vptq", fix="set vptq.outlier_columns=0"
        )
    levels = [torch.from_numpy(book_QKU) for book_QKU in codebooks(group)]
    lengths = [_lengths(group, f"index_{m}", level_QKU.shape[1]) for m, level_QKU in enumerate(levels)]
    chooser = Chooser(levels, None, [price * length_K if price > 0.0 else None for length_K in lengths])
    tensors = {}
    for name, tensor in group.tensors.items():
        rows, columns = tensor.shape
        scale = float(parts(name, tensor, settings).scale)
        x_PI = F.pad(weights[name] / (scale or 1.0), (0, 0, 0, -rows % settings.v))
        x_NV = x_PI.T.reshape(-1, settings.v).contiguous()
        index_MNQ = np.empty((len(levels), len(x_NV), settings.product), dtype=np.uint16)
        chooser.choose(x_NV, index_MNQ)
        if cheaper is not None:
            before_MNQ = _indices(tensor, index_MNQ.shape)
            changed_NQ = _cheaper(x_NV, levels, lengths, before_MNQ, index_MNQ, price, cheaper)
            index_MNQ = np.where(changed_NQ, index_MNQ, before_MNQ)
        streams = dict(tensor.streams)
        for m, index_NQ in enumerate(index_MNQ):
            streams[f"index_{m}"] = index_stream(index_NQ.reshape(columns, -1).T, levels[m].shape[1])
        tensors[name] = EncodedTensor(shape=tensor.shape, streams=streams)
    return EncodedGroup(codec=group.codec, settings=group.settings, tensors=tensors, shared=group.shared)


def _indices(tensor: EncodedTensor, shape: tuple[int, ...]) -> np.ndarray:
    """The indices that a tensor has, uint16 [M, N, Q]."""
    streams = (tensor.streams[f"index_{m}"].values for m in range(shape[0]))
    return np.stack([values.reshape(-1, tensor.shape[1]).T.reshape(shape[1:]) for values in streams])


def _cheaper(
    x_NV: Tensor,
    levels: Sequence[Tensor],
    lengths: Sequence[Tensor],
    before_MNQ: np.ndarray,
    index_MNQ: np.ndarray,
    price: float,
    share: float,
) -> np.ndarray:
    """Which vectors take their new indices: of those that then take fewer bits this share, the ones that gain most at
    this price; bool [N, Q]."""
    saved_NQ, error_NQ = np.zeros(index_MNQ.shape[1:]), np.zeros(index_MNQ.shape[1:])
    for of_MNQ, sign in ((before_MNQ, -1.0), (index_MNQ, 1.0)):
        left_NQU = x_NV.view(len(x_NV), index_MNQ.shape[2], -1).clone()
        for level_QKU, length_K, of_NQ in zip(levels, lengths, of_MNQ, strict=True):
            index_NQ = torch.from_numpy(of_NQ.astype(np.int64))
            left_NQU -= level_QKU[torch.arange(len(level_QKU)), index_NQ]
            saved_NQ -= sign * length_K[index_NQ].numpy()
        error_NQ += sign * left_NQU.square().sum(-1).numpy()
    cost_NQ = np.where(saved_NQ > 0.0, error_NQ - price * saved_NQ, np.inf)
    best = cost_NQ.argsort(axis=None, kind="stable")[: math.ceil(share * np.isfinite(cost_NQ).sum())]
    taken = np.zeros(cost_NQ.size, dtype=bool)
    taken[best] = True
    return taken.reshape(cost_NQ.shape)


def _lengths(group: EncodedGroup, role: str, size: int) -> Tensor:
    """Ideal code lengths of a role's indices, bits, float32 [K]; one that does not occur counts as half of one."""
    counts_K = sum(np.bincount(tensor.streams[role].values, minlength=size) for tensor in group.tensors.values())
    return torch.from_numpy(np.log2(counts_K.sum() / np.maximum(counts_K, 0.5))).float()


def index_bits(size: int) -> int:
    """Width of an index into so many entries."""
    return max(1, (size - 1).bit_length())


def index_stream(values: np.ndarray, size: int) -> Stream:
    """Indices into so many entries, as they are stored."""
    return Stream(values=values.reshape(-1).astype(narrowest(index_bits(size)), copy=False), bits=index_bits(size))
