"""SeedLM (arXiv 2410.10714): a block of weights is a pseudo-random basis, named by its seed, times a few coefficients.

How it works. A matrix, in row-major order, is cut into blocks w of C weights (the last one filled up with zeros). A
seed s of K bits stands for a basis U(s) [C, P] (`lfsr`). The block is stored as the seed, one exponent e and P codes:

    w ~ scale * U(s) g 2^e        g in the grid of `bits` bits: -2^(b-1) .. 2^(b-1) - 1 in steps of 1 for b >= 3,
                                  {-3, -1, 1, 3} for b = 2, {-1, 1} for b = 1 (a grid with 0 would waste a level)

at K + exponent_bits + P * bits bits for C weights. Deviations from the paper, each because it lowers the error:
- one scale per matrix (bfloat16), without which matrices of small weights hit the least exponent;
- e = ceil(log2(max|t| / limit)) with limit = 2^(b-1) - 1/2 (the paper's rule, read literally, uses the codes -2 .. 2
  only), and e - 1 beside it, whichever errs less.

`phase8.codecs.seed_search` finds seed, exponent and codes. Coefficients of 1 bit are searched jointly with the seed
(the paper rounds the pseudo-inverse's coefficients, which at 1 bit costs 20 % more squared error).

Example: C = 4, P = 2, K = 3, seed 4: V = [[2, 5], [6, 7], [3, 1], [4, 2]] and U = (V - 4) / 3; codes (3, -1) with
e = -1 and scale 1 give U (1.5, -0.5) = (-1.17, 0.5, 0, 0.33).

Shape legend: O, I rows and columns of a matrix; N blocks; C weights of a block; P coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from phase8.codecs import decoders, lfsr
from phase8.codecs.base import (
    EncodedGroup,
    EncodedTensor,
    Importance,
    Progress,
    Stream,
    Trainable,
    round_through,
)
from phase8.codecs.bitpack import narrowest
from phase8.codecs.decoders.seedlm import SETTINGS, code_values, config_of, parts
from phase8.codecs.seed_search import codes_of, limit, search
from phase8.codecs.streams import bfloat16_values
from phase8.config import SeedLMConfig
from phase8.errors import CodecError

_LEAST_WEIGHT = 0.01  # of the mean: calibration text that never used an input does not show that it is never used
_TYPICAL = 2.5  # largest coefficient of a typical block / root mean square of the weights


# ---------------------------------------------------------------------------------------------------------- the codec


def scaled_blocks(name: str, matrix: Tensor, config: SeedLMConfig) -> tuple[Tensor, np.ndarray]:
    """Cuts a matrix into blocks, divided by the matrix's scale.

    Returns:
        float32 [N, C]; the scale's bfloat16 pattern, uint16 [1].

    Raises:
        CodecError: what is no matrix, is empty, or holds NaN or infinite values.
    """
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise CodecError(f"seedlm takes matrices, not shape {tuple(matrix.shape)}", where=name)
    if not torch.isfinite(matrix).all():
        raise CodecError("the tensor holds NaN or infinite values", where=name, fix="train the model anew")
    flat = matrix.detach().float().reshape(-1)
    bits = np.array([_scale_bits(flat, config)], dtype=np.uint16)
    flat = nn.functional.pad(flat, (0, -flat.numel() % config.block_size))
    return (flat / (float(bfloat16_values(bits)[0]) or 1.0)).view(-1, config.block_size), bits


def _scale_bits(flat: Tensor, config: SeedLMConfig) -> int:
    """bfloat16 pattern of the scale that brings typical blocks to exponent 0 and keeps the largest in range."""
    top = 2.0 ** ((1 << (config.exponent_bits - 1)) - 1)
    norm, (low, high) = torch.linalg.vector_norm(flat, dtype=torch.float64), flat.aminmax()
    typical = max(float(norm) / math.sqrt(flat.numel()), max(-float(low), float(high)) / top)
    return int(_bfloat16_bits(torch.tensor(_TYPICAL * typical / limit(config.bits)))[0])


def _weights(matrix: Tensor, importance: Importance) -> Tensor:
    """What a squared error in each weight counts, mean about 1: Hessian's diagonal times row weight; float32 [O, I]."""
    weights = torch.ones(matrix.shape)
    for each, shape in ((importance.hessian_II, (1, -1)), (importance.row_O, (-1, 1))):
        if each is not None:
            diagonal = each.diagonal() if each.ndim == 2 else each
            mean = float(diagonal.mean())
            weights = weights * (diagonal / mean if mean > 0 else torch.ones_like(diagonal)).view(shape)
    return weights.clamp_min(_LEAST_WEIGHT)


def _bfloat16_bits(x: Tensor) -> np.ndarray:
    return x.detach().reshape(-1).bfloat16().view(torch.int16).numpy().view(np.uint16).copy()


class SeedLMCodec:
    """See the module's text. Streams of a tensor: `seeds`, `exponents` (offset), `codes`, `scale` (bfloat16)."""

    name = "seedlm"

    def encode(
        self,
        weights: Mapping[str, Tensor],
        config: SeedLMConfig,
        *,
        importance: Mapping[str, Importance],
        seed: int,
        on_progress: Progress | None = None,
    ) -> EncodedGroup:
        """Encodes float32 matrices [O, I]; the more of them in one call, the faster per weight. See `Codec.encode`.

        `importance` has influence where `config.weighted` is set, `seed` never: nothing here is drawn at random.
        """
        scales, blocks, roots = [], [], []
        for name, matrix in weights.items():
            scaled, scale = scaled_blocks(name, matrix, config)
            blocks.append(scaled)
            scales.append(scale)
            if config.weighted:
                weight = _weights(matrix, importance.get(name, Importance())).sqrt().reshape(-1)
                roots.append(nn.functional.pad(weight, (0, -weight.numel() % config.block_size), value=_LEAST_WEIGHT))
        counts = [len(part) for part in blocks]
        remaining = sum(matrix.numel() for matrix in weights.values())

        def on_blocks(count: int) -> None:
            nonlocal remaining
            finished = min(count * config.block_size, remaining)
            remaining -= finished
            if on_progress is not None:
                on_progress(finished)

        with torch.no_grad():
            found: tuple[Tensor, ...] = (torch.empty(0),) * 3
            if blocks:
                joined = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
                every = torch.cat(roots).view(-1, config.block_size) if roots else None
                blocks.clear()
                roots.clear()
                found = search(joined, config, on_blocks, every)
        tensors = {}
        parts = zip(weights.items(), scales, *(each.split(counts) for each in found), strict=True)
        for (name, matrix), scale, seeds, exponents, codes in parts:
            half_range = 1 << (config.exponent_bits - 1)
            tensors[name] = EncodedTensor(
                shape=tuple(matrix.shape),
                streams={
                    "seeds": _stream(seeds, config.seed_bits),
                    "exponents": _stream(exponents + half_range, config.exponent_bits),
                    "codes": _stream(codes, config.bits),
                    "scale": Stream(values=scale, bits=16),
                },
            )
        settings = {name: getattr(config, name) for name in SETTINGS}
        return EncodedGroup(codec=self.name, settings=settings, tensors=tensors)

    def decode(self, group: EncodedGroup) -> dict[str, np.ndarray]:
        """Returns every matrix, float32 [O, I]; see `Codec.decode`."""
        return dict(decoders.decode(group))

    def trainable(self, group: EncodedGroup) -> Trainable:
        """Returns coefficients and scales as parameters; seeds and exponents stay."""
        return _SeedLMTrainable(group)


def _stream(values: Tensor, bits: int) -> Stream:
    return Stream(values=values.reshape(-1).numpy().astype(narrowest(bits)), bits=bits)


class _SeedLMTrainable(Trainable):
    """Coefficients t = scale * g * 2^e in the units of the weights, rounded to the grid straight-through."""

    relative_step = 0.003

    def __init__(self, group: EncodedGroup) -> None:
        super().__init__()
        decoders.check(group)
        self._group, self._config = group, config_of(group.settings)
        config = self._config
        self._names = list(group.tensors)
        coefficients, scales = [], []
        for number, (name, tensor) in enumerate(group.tensors.items()):
            seeds, exponents, codes, scale = parts(name, tensor, config)
            steps = torch.from_numpy(np.ldexp(np.float32(1), exponents))[:, None]
            bases = torch.from_numpy(lfsr.bases(seeds, config.block_size, config.latent_dim, config.seed_bits))
            self.register_buffer(f"steps_{number}", steps, persistent=False)
            self.register_buffer(f"bases_{number}", bases, persistent=False)
            levels = code_values(torch.from_numpy(codes.astype(np.float32)), config.bits)
            scales.append(nn.Parameter(torch.tensor(float(scale))))
            coefficients.append(nn.Parameter(levels * steps * float(scale)))
        self.coefficients = nn.ParameterList(coefficients)
        """float32 [N, P] each, in the units of the weights."""
        self.scales = nn.ParameterList(scales)
        """float32 scalars."""

    def _scale(self, number: int) -> Tensor:
        scale = self.scales[number]
        return round_through(scale, scale.bfloat16().float())

    def _units(self, number: int) -> Tensor:
        """Coefficients in units of scale * 2^e; zero where the scale is."""
        scale = self._scale(number).detach()
        return self.coefficients[number] / torch.where(scale == 0, 1.0, scale) / getattr(self, f"steps_{number}")

    def weights(self) -> dict[str, Tensor]:
        result = {}
        for number, name in enumerate(self._names):
            units = self._units(number)
            levels = round_through(units, code_values(codes_of(units.detach(), self._config.bits), self._config.bits))
            scaled = levels * getattr(self, f"steps_{number}") * self._scale(number)
            flat = torch.bmm(getattr(self, f"bases_{number}"), scaled[:, :, None]).reshape(-1)
            shape = self._group.tensors[name].shape
            result[name] = flat[: math.prod(shape)].view(shape)
        return result

    def export(self) -> EncodedGroup:
        tensors = {}
        for number, name in enumerate(self._names):
            tensor = self._group.tensors[name]
            codes = codes_of(self._units(number).detach(), self._config.bits).cpu()
            changed = {
                "codes": _stream(codes, self._config.bits),
                "scale": Stream(values=_bfloat16_bits(self.scales[number].detach().cpu()), bits=16),
            }
            tensors[name] = EncodedTensor(shape=tensor.shape, streams={**tensor.streams, **changed})
        return EncodedGroup(codec=self._group.codec, settings=self._group.settings, tensors=tensors)
