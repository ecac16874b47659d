"""Tensors stored as they are: norms, biases, and whatever a `protect` pattern names.

Each tensor is held in the narrowest of bfloat16, float16 and float32 that gives back every value exactly, else in
float16: rounding a norm's weight to 11 significant bits is far below what any stage does to the matrices. Example:
[1.0, 0.5] is exact in bfloat16 and takes 4 bytes before entropy coding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from phase8.codecs import decoders
from phase8.codecs.base import EncodedGroup, EncodedTensor, Importance, Progress, Stream, Trainable, round_through
from phase8.errors import CodecError


def _narrowest(tensor: Tensor) -> torch.dtype:
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(tensor.to(dtype).float(), tensor):
            return dtype
    return torch.float16 if tensor.abs().max() < 6.0e4 else torch.float32


def _encode_as(weights: Mapping[str, Tensor], dtype: torch.dtype) -> EncodedGroup:
    tensors = {}
    for name, tensor in weights.items():
        flat = tensor.detach().to(dtype).contiguous().reshape(-1)
        if dtype is torch.float32:
            stream = Stream(values=flat.view(torch.int32).numpy().view(np.uint32), bits=32)
        else:
            stream = Stream(values=flat.view(torch.int16).numpy().view(np.uint16), bits=16)
        tensors[name] = EncodedTensor(shape=tuple(tensor.shape), streams={"values": stream})
    return EncodedGroup(codec="plain", settings={"dtype": str(dtype).removeprefix("torch.")}, tensors=tensors)


class PlainCodec:
    """The codec of tensors that no stage compresses. One group, one number format."""

    name = "plain"

    def encode(
        self,
        weights: Mapping[str, Tensor],
        config: Any = None,
        *,
        importance: Mapping[str, Importance] | None = None,
        seed: int = 0,
        on_progress: Progress | None = None,
    ) -> EncodedGroup:
        """Encodes float32 tensors of any shape; see `Codec.encode`."""
        for name, tensor in weights.items():
            if not torch.isfinite(tensor).all():
                raise CodecError("the tensor holds NaN or infinite values", where=name, fix="train the model anew")
        formats = {_narrowest(tensor) for tensor in weights.values()}
        dtype = formats.pop() if len(formats) == 1 else torch.float32 if torch.float32 in formats else torch.float16
        group = _encode_as(weights, dtype)
        if on_progress is not None:
            on_progress(sum(tensor.numel() for tensor in weights.values()))
        return group

    def decode(self, group: EncodedGroup) -> dict[str, np.ndarray]:
        """Returns every tensor, float32 in its own shape; see `Codec.decode`."""
        return dict(decoders.decode(group))

    def trainable(self, group: EncodedGroup) -> Trainable:
        """Returns the tensors as parameters, rounded to their stored format straight-through."""
        return _PlainTrainable(self.decode(group), getattr(torch, str(group.settings["dtype"])))


class _PlainTrainable(Trainable):
    relative_step = 0.003

    def __init__(self, values: Mapping[str, np.ndarray], dtype: torch.dtype) -> None:
        super().__init__()
        self._names, self._dtype = list(values), dtype
        self.values = nn.ParameterList([nn.Parameter(torch.from_numpy(value.copy())) for value in values.values()])

    def weights(self) -> dict[str, Tensor]:
        pairs = zip(self._names, self.values, strict=True)
        return {name: round_through(value, value.to(self._dtype).float()) for name, value in pairs}

    def export(self) -> EncodedGroup:
        return _encode_as(dict(zip(self._names, self.values, strict=True)), self._dtype)


CODEC = PlainCodec()
