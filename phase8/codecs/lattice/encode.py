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
from phase8.codecs.lattice.decode import parts_of
from phase8.codecs.lattice.train import LatticeTrainable, kept_part
from phase8.errors import CodecError
from phase8.lossless import contexts


@dataclass(frozen=True, kw_only=True, slots=True)
class LatticeConfig:
    """Where a lattice begins."""

    start_step: float = 0.6
    """Step in standard deviations of its matrix."""


def pack(
    integers: Mapping[str, np.ndarray],
    steps: Mapping[str, float],
    shapes: Mapping[str, tuple[int, int]],
    shared: Mapping[str, str] | None = None,
) -> EncodedGroup:
    """Makes a group of integer matrices, each the upper left part of a matrix of the shape given.

    Args:
        steps: of every matrix, in the order of the file.
        shared: matrices without integers of their own, and the earlier ones whose integers they have.

    Raises:
        CodecError: an integer or a step is beyond what is stored.
    """
    blob = contexts.encode(list(integers.values()))
    owners, numbers = shared or {}, {name: number for number, name in enumerate(steps)}
    extents = [numbers[owners[name]] if name in owners else list(integers[name].shape) for name in steps]
    tensors = {}
    for name in steps:
        bits = float16_bits(np.array([steps[name]], dtype=np.float32))
        if not np.isfinite(bits.view(np.float16)).all():
            raise CodecError(f"the step {steps[name]:g} is beyond float16", where=name, fix="lower the learning rate")
        tensors[name] = EncodedTensor(shape=tuple(shapes[name]), streams={"step": Stream(values=bits, bits=16)})
    return EncodedGroup(
        codec="lattice",
        settings={"extents": extents, "coded_bytes": len(blob)},
        tensors=tensors,
        shared={"codes": Stream(values=np.frombuffer(blob, dtype=np.uint8), bits=8)},
    )


def first_step(w: Tensor, config: LatticeConfig) -> float:
    """The step that a matrix begins with; rows and columns of zeros do not count."""
    return float(np.float16(config.start_step * float(kept_part(w).float().std(correction=0)))) or 2.0**-14


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
            steps[name] = first_step(w, config)
            integers[name] = (w.float() / steps[name]).round().to(torch.int64).numpy()
            if on_progress is not None:
                on_progress(w.numel())
        return pack(integers, steps, {name: q.shape for name, q in integers.items()})

    def decode(self, group: EncodedGroup) -> dict[str, np.ndarray]:
        """Returns every matrix, float32 [O, I]; see `Codec.decode`."""
        return dict(decoders.decode(group))

    def trainable(self, group: EncodedGroup) -> LatticeTrainable:
        """Returns weights and steps as parameters; see `Codec.trainable`."""
        names, decoded = list(group.tensors), self.decode(group)
        of_each = parts_of(group.settings, group.shapes)
        parts = {
            name: torch.from_numpy(decoded[name][: extent[0], : extent[1]].copy())
            for number, (name, (owner, extent)) in enumerate(zip(names, of_each, strict=True))
            if owner == number
        }
        shared = {name: names[owner] for name, (owner, _) in zip(names, of_each, strict=True) if name not in parts}
        steps = {
            name: float(tensor.streams["step"].values.astype(np.uint16).view(np.float16)[0])
            for name, tensor in group.tensors.items()
        }
        return LatticeTrainable(parts, steps, group.shapes, shared)


CODEC = LatticeCodec()
