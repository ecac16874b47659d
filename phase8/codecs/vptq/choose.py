"""Chooses a group's indices again, by distance and by what an index costs.

    index(x) = argmin_k  |x - c_k|^2 + price * length_k          length_k = -log2 of the share of index k, in bits

under the codebooks as they are. The lengths are those of the choice before, so a rare entry becomes rarer and the
entropy falls; the fixed point is that of entropy-constrained vector quantisation (Chou, Lookabaugh and Gray 1989,
section III). With several codebooks they are chosen one after the other, each for what the ones before left over.

Shape legend: as in `phase8.codecs.vptq.encode`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from phase8.codecs.streams import EncodedGroup, EncodedTensor
from phase8.codecs.vptq.decode import codebooks, parts, settings_of
from phase8.codecs.vptq.encode import Chooser, index_stream
from phase8.errors import CodecError


def choose_again(group: EncodedGroup, weights: Mapping[str, Tensor], price: float) -> EncodedGroup:
    """The group with indices for these weights.

    Args:
        weights: of every matrix of the group, float32 [O, I].
        price: of a bit, in mean squares of a weight over its matrix's scale.

    Raises:
        CodecError: the group has outlier columns, which are not chosen again.
    """
    settings = settings_of(group.settings)
    if settings.share:
        raise CodecError(
            "indices of outlier columns cannot be chosen again", where="vptq", fix="set vptq.outlier_columns=0"
        )
    levels = [torch.from_numpy(book_QKU) for book_QKU in codebooks(group)]
    lengths = [
        price * _lengths(group, f"index_{m}", level_QKU.shape[1]) if price > 0.0 else None
        for m, level_QKU in enumerate(levels)
    ]
    chooser = Chooser(levels, None, lengths)
    tensors = {}
    for name, tensor in group.tensors.items():
        rows, columns = tensor.shape
        scale = float(parts(name, tensor, settings).scale)
        x_PI = F.pad(weights[name] / (scale or 1.0), (0, 0, 0, -rows % settings.v))
        x_NV = x_PI.T.reshape(-1, settings.v).contiguous()
        index_MNQ = np.empty((len(levels), len(x_NV), settings.product), dtype=np.uint16)
        chooser.choose(x_NV, index_MNQ)
        streams = dict(tensor.streams)
        for m, index_NQ in enumerate(index_MNQ):
            streams[f"index_{m}"] = index_stream(index_NQ.reshape(columns, -1).T, levels[m].shape[1])
        tensors[name] = EncodedTensor(shape=tensor.shape, streams=streams)
    return EncodedGroup(codec=group.codec, settings=group.settings, tensors=tensors, shared=group.shared)


def _lengths(group: EncodedGroup, role: str, size: int) -> Tensor:
    """Ideal code lengths of a role's indices, bits, float32 [K]; one that does not occur counts as half of one."""
    counts_K = sum(np.bincount(tensor.streams[role].values, minlength=size) for tensor in group.tensors.values())
    return torch.from_numpy(np.log2(counts_K.sum() / np.maximum(counts_K, 0.5))).float()
