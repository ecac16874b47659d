"""SeedLM (arXiv 2410.10714): a block of weights is a pseudo-random basis, named by its seed, times a few coefficients.

How it works. A matrix, in row-major order, is cut into blocks w of C weights (the last one filled up with zeros). A
seed s of K bits stands for a basis U(s) [C, P] (`lfsr`). The block is stored as the seed, one exponent e and P codes:

    w ~ scale * U(s) g 2^e        g in the grid of `bits` bits: -2^(b-1) .. 2^(b-1) - 1 in steps of 1 for b >= 3,
                                  {-3, -1, 1, 3} for b = 2, {-1, 1} for b = 1 (a grid with 0 would waste a level)

at K + exponent_bits + P * bits bits for C weights. Deviations from the paper, each because it lowers the error:
- one scale per matrix (bfloat16), without which matrices of small weights hit the least exponent;
- e = ceil(log2(max|t| / limit)) with limit = 2^(b-1) - 1/2 (the paper's rule, read literally, uses the codes -2 .. 2
  only), and e - 1 beside it, whichever errs less.

`seed_search.py` (with `bank.py`, `cells.py`) finds seed, exponent and codes, for runs of at most 4 million weights,
which span small matrices and cut large ones: beside the streams, memory does not grow with the matrices. Coefficients
of 1 bit are searched jointly with the seed (the paper rounds the pseudo-inverse's coefficients, which at 1 bit costs 20
% more squared error).

Example: C = 4, P = 2, K = 3, seed 4: V = [[2, 5], [6, 7], [3, 1], [4, 2]] and U = (V - 4) / 3; codes (3, -1) with
e = -1 and scale 1 give U (1.5, -0.5) = (-1.17, 0.5, 0, 0.33).

Shape legend: O, I rows and columns of a matrix; N blocks; C weights of a block; P coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from phase8.codecs import decoders
from phase8.codecs.base import EncodedGroup, EncodedTensor, Importance, Progress, Stream, Trainable, round_through
from phase8.codecs.matrices import AT_ONCE, Matrix, extremes, in_parts, matrices, size_of
from phase8.codecs.seedlm import lfsr
from phase8.codecs.seedlm.bank import codes_of, limit
from phase8.codecs.seedlm.decode import code_values, parts, settings_of
from phase8.codecs.seedlm.seed_search import search
from phase8.codecs.seedlm.settings import SeedLMConfig
from phase8.codecs.streams import bfloat16_values
from phase8.errors import CodecError
from phase8.lossless.bitpack import narrowest

_LEAST_WEIGHT = 0.01  # of the mean: calibration text that never used an input does not show that it is never used
_TYPICAL = 2.5  # largest coefficient of a typical block / root mean square of the weights


# ---------------------------------------------------------------------------------------------------------- the codec


def scale_of(name: str, matrix: Matrix, config: SeedLMConfig) -> np.ndarray:
    """The scale that brings typical blocks to exponent 0 and keeps the largest in range; bfloat16 pattern, uint16 [1].

    Raises:
        CodecError: what is no matrix, is empty, or holds NaN or infinite values.
    """
    if len(matrix.shape) != 2 or size_of(matrix) == 0:
        raise CodecError(f"seedlm takes matrices, not shape {tuple(matrix.shape)}", where=name)
    low, high = extremes(name, matrix)
    norm = math.hypot(*(float(torch.linalg.vector_norm(each, dtype=torch.float64)) for each in in_parts(matrix)))
    top = 2.0 ** ((1 << (config.exponent_bits - 1)) - 1)
    typical = max(norm / math.sqrt(size_of(matrix)), max(-low, high) / top)
    return _bfloat16_bits(torch.tensor(_TYPICAL * typical / limit(config.bits)))


def blocks_of(matrix: Matrix, scale: np.ndarray, config: SeedLMConfig, rows: slice) -> Tensor:
    """The blocks `rows` of a matrix, divided by the scale; float32 [N, C]."""
    flat = matrix.part(rows.start * config.block_size, min(rows.stop * config.block_size, size_of(matrix)))
    blocks = torch.zeros(rows.stop - rows.start, config.block_size)
    blocks.view(-1)[: len(flat)] = flat
    return blocks.div_(float(bfloat16_values(scale)[0]) or 1.0)


def _roots_of(matrix: Matrix, importance: Importance, config: SeedLMConfig, rows: slice) -> Tensor:
    """Root of what a squared error in each weight of some blocks counts; float32 [N, C].

    That is the Hessian's diagonal times the row's weight, both with a mean of 1.
    """
    factors = []
    for each, length in ((importance.row_O, matrix.shape[0]), (importance.hessian_II, matrix.shape[1])):
        diagonal = torch.ones(length) if each is None else each.diagonal() if each.ndim == 2 else each
        mean = float(diagonal.mean())
        factors.append(diagonal / mean if mean > 0 else torch.ones(length))
    places = torch.arange(rows.start * config.block_size, min(rows.stop * config.block_size, size_of(matrix)))
    weights = factors[0][places // matrix.shape[1]] * factors[1][places % matrix.shape[1]]
    roots = weights.clamp_min(_LEAST_WEIGHT).sqrt()
    padding = (0, -len(roots) % config.block_size)
    return nn.functional.pad(roots, padding, value=_LEAST_WEIGHT).view(-1, config.block_size)


def _bfloat16_bits(x: Tensor) -> np.ndarray:
    return x.detach().reshape(-1).bfloat16().view(torch.int16).numpy().view(np.uint16).copy()


class SeedLMCodec:
    """See the module's text. Streams of a tensor: `seeds`, `exponents` (offset), `codes`, `scale` (bfloat16)."""

    name = "seedlm"

    def encode(
        self,
        weights: Mapping[str, Tensor | Matrix],
        config: SeedLMConfig,
        *,
        importance: Mapping[str, Importance],
        seed: int,
        on_progress: Progress | None = None,
    ) -> EncodedGroup:
        """Encodes float32 matrices [O, I]; the more of them in one call, the faster per weight. See `Codec.encode`.

        `importance` has influence where `config.weighted` is set, `seed` never: nothing here is drawn at random.
        """
        taken = matrices(weights)
        scales = {name: scale_of(name, matrix, config) for name, matrix in taken.items()}
        counts = {name: -(-size_of(matrix) // config.block_size) for name, matrix in taken.items()}
        half_range = 1 << (config.exponent_bits - 1)
        tensors = {
            name: EncodedTensor(
                shape=matrix.shape,
                streams={
                    "seeds": _empty(counts[name], config.seed_bits),
                    "exponents": _empty(counts[name], config.exponent_bits),
                    "codes": _empty(counts[name] * config.latent_dim, config.bits),
                    "scale": Stream(values=scales[name], bits=16),
                },
            )
            for name, matrix in taken.items()
        }
        remaining = sum(map(size_of, taken.values()))

        def on_blocks(count: int) -> None:
            nonlocal remaining
            finished = min(count * config.block_size, remaining)
            remaining -= finished
            if on_progress is not None:
                on_progress(finished)

        with torch.no_grad():
            # More weights in a run would fill the search's cells better, but take some 30 bytes each.
            for run in _runs(counts, max(1, AT_ONCE // config.block_size)):
                blocks = _joined([blocks_of(taken[name], scales[name], config, rows) for name, rows in run])
                roots = None
                if config.weighted:
                    each = ((taken[name], importance.get(name, Importance()), config, rows) for name, rows in run)
                    roots = _joined([_roots_of(*one) for one in each])
                found = search(blocks, config, on_blocks, roots)
                lengths = [rows.stop - rows.start for _, rows in run]
                parts = zip(run, *(each.split(lengths) for each in found), strict=True)
                for (name, rows), seeds, exponents, codes in parts:
                    streams = tensors[name].streams
                    streams["seeds"].values[rows] = seeds.numpy()
                    streams["exponents"].values[rows] = (exponents + half_range).numpy()
                    streams["codes"].values.reshape(-1, config.latent_dim)[rows] = codes.numpy()
        shapes = {name: matrix.shape for name, matrix in taken.items()}
        return EncodedGroup(codec=self.name, settings=config.stored(shapes), tensors=tensors)

    def decode(self, group: EncodedGroup) -> dict[str, np.ndarray]:
        """Returns every matrix, float32 [O, I]; see `Codec.decode`."""
        return dict(decoders.decode(group))

    def trainable(self, group: EncodedGroup) -> Trainable:
        """Returns coefficients and scales as parameters; seeds and exponents stay."""
        return _SeedLMTrainable(group)


def _runs(counts: Mapping[str, int], most: int) -> Iterator[list[tuple[str, slice]]]:
    """Cuts the tensors' blocks, one tensor after the other, into runs of equal size of at most `most` blocks.

    Equal, as the search is slow where a run is short. Example: at most 4 of a's 3 and b's 6: [a 0:3], [b 0:3], [b 3:6].
    """
    total = sum(counts.values())
    number = -(-total // most)
    for run in range(number):
        begin, end = run * total // number, (run + 1) * total // number
        parts, first = [], 0
        for name, count in counts.items():
            rows = slice(max(0, begin - first), min(count, end - first))
            if rows.start < rows.stop:
                parts.append((name, rows))
            first += count
        yield parts


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _empty(count: int, bits: int) -> Stream:
    return Stream(values=np.empty(count, dtype=narrowest(bits)), bits=bits)


def _stream(values: Tensor, bits: int) -> Stream:
    return Stream(values=values.reshape(-1).numpy().astype(narrowest(bits)), bits=bits)


class _SeedLMTrainable(Trainable):
    """Coefficients t = scale * g * 2^e in the units of the weights, rounded to the grid straight-through."""

    relative_step = 0.003

    def __init__(self, group: EncodedGroup) -> None:
        super().__init__()
        decoders.check(group)
        self._group, self._config = group, settings_of(group.settings)
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


CODEC = SeedLMCodec()
