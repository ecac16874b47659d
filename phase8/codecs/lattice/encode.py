"""The start of a lattice: every weight to the nearest multiple of its matrix's step.

    q = round(w / step)        step = `start_step` times the matrix's standard deviation

At one standard deviation a Gaussian matrix takes 2.1 bits a weight; below about 1.5 bits rounding alone ruins a model
(experiments/LOG.md), and training takes over (`train.py`, `phase8.train.lattice`). Importance is not used here: error
feedback (GPTQ) and steps per column (WaterSIC) were measured as starts and gained nothing after training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from phase8.codecs import decoders
from phase8.codecs.base import EncodedGroup, EncodedTensor, Importance, Progress, Stream, float16_bits
from phase8.codecs.lattice.train import LatticeTrainable
from phase8.errors import CodecError
from phase8.lossless import contexts


@dataclass(frozen=True, kw_only=True, slots=True)
class LatticeConfig:
    """Where a lattice begins."""

    start_step: float = 0.6
    """Step in standard deviations of its matrix."""


def pack(integers: Mapping[str, np.ndarray], steps: Mapping[str, float], shapes: Mapping[str, tuple[int, int]]):
    """Makes a group of integer matrices, each the upper left part of a matrix of the shape given.

    Raises:
        CodecError: an integer or a step is beyond what is stored.
    """
    blob = contexts.encode(list(integers.values()))
    tensors = {}
    for name in integers:
        bits = float16_bits(np.array([steps[name]], dtype=np.float32))
        if not np.isfinite(bits.view(np.float16)).all():
            raise CodecError(f"the step {steps[name]:g} is beyond float16", where=name, fix="lower the learning rate")
        tensors[name] = EncodedTensor(shape=tuple(shapes[name]), streams={"step": Stream(values=bits, bits=16)})
    return EncodedGroup(
        codec="lattice",
        settings={"extents": [list(q.shape) for q in integers.values()], "coded_bytes": len(blob)},
        tensors=tensors,
        shared={"codes": Stream(values=np.frombuffer(blob, dtype=np.uint8), bits=8)},
    )


class LatticeCodec:
    """Integers on a lattice with one step a matrix."""

    name = "lattice"

    def encode(
        self,
        weights: Mapping[str, Tensor],
        config: LatticeConfig,
        *,
        importance: Mapping[str, Importance] | None = None,
        seed: int = 0,
        on_progress: Progress | None = None,
    ) -> EncodedGroup:
        """Encodes matrices [O, I]; see `Codec.encode`."""
        integers, steps = {}, {}
        for name, matrix in weights.items():
            w = torch.as_tensor(np.asarray(matrix[:])) if not isinstance(matrix, Tensor) else matrix.detach()
            if not torch.isfinite(w).all():
                raise CodecError("the tensor holds NaN or infinite values", where=name, fix="train the model anew")
            deviation = float(w.float().std(correction=0))
            steps[name] = float(np.float16(config.start_step * deviation)) or 2.0**-14
            integers[name] = (w.float() / steps[name]).round().to(torch.int64).numpy()
            if on_progress is not None:
                on_progress(w.numel())
        return pack(integers, steps, {name: q.shape for name, q in integers.items()})

    def decode(self, group: EncodedGroup) -> dict[str, np.ndarray]:
        """Returns every matrix, float32 [O, I]; see `Codec.decode`."""
        return dict(decoders.decode(group))

    def trainable(self, group: EncodedGroup) -> LatticeTrainable:
        """Returns weights and steps as parameters; see `Codec.trainable`."""
        extents = [tuple(extent) for extent in group.settings["extents"]]
        decoded = self.decode(group)
        parts = {
            name: torch.from_numpy(decoded[name][:o, :i].copy()) for name, (o, i) in zip(decoded, extents, strict=True)
        }
        steps = {
            name: float(tensor.streams["step"].values.astype(np.uint16).view(np.float16)[0])
            for name, tensor in group.tensors.items()
        }
        return LatticeTrainable(parts, steps, group.shapes)


CODEC = LatticeCodec()
