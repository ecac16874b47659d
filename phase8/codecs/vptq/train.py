"""Codebooks and scales as parameters, the indices as they are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phase8.codecs import decoders
from phase8.codecs.base import (
    EncodedGroup,
    EncodedTensor,
    Stream,
    Trainable,
    float16_bits,
    round_through,
)
from phase8.codecs.vptq.books import round_codebook
from phase8.codecs.vptq.decode import (
    codebooks,
    parts,
    settings_of,
)
from phase8.errors import CodecError


class VPTQTrainable(Trainable):
    """Codebooks float32 [Q, K, U] and one scale per matrix, rounded straight-through."""

    relative_step = 0.01

    def __init__(self, group: EncodedGroup) -> None:
        super().__init__()
        decoders.check(group)
        self._group, self._settings = group, settings_of(group.settings)
        self._roles, product = list(self._settings.books()), self._settings.product
        tensors = [parts(name, tensor, self._settings) for name, tensor in group.tensors.items()]
        values = [torch.from_numpy(book.copy()) for book in codebooks(group)]
        self.codebooks = nn.ParameterList([nn.Parameter(value) for value in values])
        self.scales = nn.Parameter(torch.tensor([float(found.scale) for found in tensors]))
        for t, found in enumerate(tensors):
            for m, (index_GI, size) in enumerate(zip(found.indices, self._settings.sizes, strict=True)):
                # The parts' codebooks lie one after the other.
                part_G = (np.arange(len(index_GI), dtype=np.int32) % product)[:, None]
                self._note(f"index_{t}_{m}", index_GI.astype(np.int32) + part_G * size)
            if found.outlier_index is not None:
                self._note(f"index_{t}_{len(self._settings.sizes)}", found.outlier_index.astype(np.int32))
            self._note(f"place_{t}", np.argsort(np.concatenate([found.columns, found.outliers])))

    def _note(self, name: str, values: np.ndarray) -> None:
        self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def _entries(self) -> list[Tensor]:
        """The codebooks, [Q K, U] each."""
        books = [round_through(c, round_codebook(c, self._settings.bits)[0]) for c in self.codebooks]
        return [book_QKU.flatten(0, 1) for book_QKU in books]

    def weights(self) -> dict[str, Tensor]:
        codebooks = self._entries()
        scales_T = round_through(self.scales, self.scales.detach().half().float())
        weights = {}
        for t, (name, tensor) in enumerate(self._group.tensors.items()):
            rows, count = tensor.shape[0], len(self._settings.sizes)
            sum_GIU = F.embedding(getattr(self, f"index_{t}_0"), codebooks[0])
            for m, codebook in enumerate(codebooks[1:count], start=1):
                sum_GIU = sum_GIU + F.embedding(getattr(self, f"index_{t}_{m}"), codebook)
            sum_PI = sum_GIU.transpose(1, 2).flatten(0, 1)
            if "outlier_column" in tensor.streams:
                outlier_GIV = F.embedding(getattr(self, f"index_{t}_{count}"), codebooks[count])
                sum_PI = torch.cat([sum_PI, outlier_GIV.transpose(1, 2).flatten(0, 1)], dim=1)
                sum_PI = sum_PI[:, getattr(self, f"place_{t}")]
            weights[name] = sum_PI[:rows] * scales_T[t]
        return weights

    def export(self) -> EncodedGroup:
        """Returns the group with the parameters as they are now.

        Raises:
            CodecError: training drove a parameter to NaN or beyond float16.
        """
        scales = self.scales.detach().cpu().half()
        stored, values = {}, [scales]
        for role, parameter in zip(self._roles, self.codebooks, strict=True):
            rounded, streams = round_codebook(parameter.cpu(), self._settings.bits)
            stored |= {role + suffix: stream for suffix, stream in streams.items()}
            values.append(rounded)
        if not all(torch.isfinite(x).all() for x in values):
            raise CodecError(
                "a codebook or scale is NaN or too large for float16", where="vptq", fix="lower the learning rate"
            )
        tensors = {
            name: EncodedTensor(
                shape=tensor.shape, streams={**tensor.streams, "scale": Stream(values=float16_bits(scale), bits=16)}
            )
            for (name, tensor), scale in zip(self._group.tensors.items(), scales, strict=True)
        }
        return EncodedGroup(codec=self._group.codec, settings=self._group.settings, tensors=tensors, shared=stored)
