"""SeedLM (arXiv 2410.10714): a block of weights is a pseudo-random basis, named by its seed, times a few coefficients.

How it works. A matrix, in row-major order, is cut into blocks w of C weights (the last one filled up with zeros). A
seed s of K bits stands for a basis U(s) [C, P] (`lfsr`). The block is stored as the seed, one exponent e and P codes:

    w ~ scale * U(s) g 2^e        g in the grid of `bits` bits: -2^(b-1) .. 2^(b-1) - 1 in steps of 1 for b >= 3,
                                  {-3, -1, 1, 3} for b = 2, {-1, 1} for b = 1 (a grid with 0 would waste a level)

at K + exponent_bits + P * bits bits for C weights. Deviations from the paper, each because it lowers the error:
- one scale per matrix (bfloat16), without which matrices of small weights hit the least exponent;
- e = ceil(log2(max|t| / limit)) with limit = 2^(b-1) - 1/2 (the paper's rule, read literally, uses the codes -2 .. 2
  only), and e - 1 beside it, whichever errs less.

Search (section 3.2). The share of |w|^2 that a basis can express is w^T P_s w / |w|^2, P_s the projector on U(s): an
inner product of two vectors of C (C + 1) / 2 numbers, so that one matrix product scores many blocks against many seeds
(float32). For wide blocks (C > 16) the scores are |Q_s^T w|^2, Q_s an orthonormal basis, in bfloat16. Of the
`candidates` seeds with the best score, the one with the least squared error *with quantised coefficients* wins, the
lowest seed in a tie. A seed whose unquantised error already exceeds the quantised error of the best-scoring one cannot
win, and is left out of the exact comparison; that changes no result.
- `exhaustive` scores all 2^K - 1 seeds for every block.
- `fast` puts the blocks, whose directions have only C - 1 degrees of freedom, into cells around `_CELLS` fixed random
  directions, and scores only the seeds listed for the cell: those whose bases come close to its centre. It takes
  exhaustive search where lists do not pay: few blocks, few seeds, or C > 16, where all directions are far apart.

Example: C = 4, P = 2, K = 3, seed 4: V = [[2, 5], [6, 7], [3, 1], [4, 2]] and U = (V - 4) / 3; codes (3, -1) with
e = -1 and scale 1 give U (1.5, -0.5) = (-1.17, 0.5, 0, 0.33).

Shape legend: O, I rows and columns of a matrix; N blocks; S seeds; M pairs of a block and a seed; C weights of a block;
P coefficients; F = C (C + 1) / 2 products of two weights; L seeds of a cell's list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

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
from phase8.codecs.streams import bfloat16_values
from phase8.config import SeedLMConfig, SeedSearch
from phase8.errors import CodecError

_CELLS = 2048
_LIST_SEEDS = 3072  # mean length of a cell's list
_CELLS_AT_ONCE = 16
_FEATURE_LIMIT = 16  # widest block that is scored by its products of two weights
_SCORES_AT_ONCE = 1 << 23
_ELEMENTS_AT_ONCE = 1 << 22
_FLOAT32_SLACK = 1e-5  # of |w|^2: more than the scores' rounding error
_BFLOAT16_SLACK = 1e-2
_TYPICAL = 2.5  # largest coefficient of a typical block / root mean square of the weights


# ---------------------------------------------------------------------------------------------------- the number grid


def _limit(bits: int) -> float:
    """Largest |t| / 2^e that a code stands for with its usual rounding error."""
    return float(1 << bits) if bits <= 2 else (1 << (bits - 1)) - 0.5


def _codes(x: Tensor, bits: int) -> Tensor:
    """Nearest codes, float, 0 .. 2^bits - 1, of coefficients divided by 2^e."""
    half = 1 << (bits - 1)
    nearest = torch.floor(x / 2) + half if bits <= 2 else torch.round(x) + half
    return nearest.clamp_(0, 2 * half - 1)


# ---------------------------------------------------------------------------------------------------------- the bases


class _Bank:
    """All bases of one setting (C, P, K), and what scoring them needs."""

    def __init__(self, block_size: int, latent_dim: int, seed_bits: int) -> None:
        self.block_size, self.latent_dim = block_size, latent_dim
        numbers, start = lfsr.wave(seed_bits, block_size * latent_dim)
        self._windows = torch.from_numpy(numbers.copy()).unfold(0, block_size * latent_dim, 1)
        self._start = torch.from_numpy(start.copy())
        self.seeds = torch.arange(1, 1 << seed_bits)
        self.narrow = block_size <= _FEATURE_LIMIT
        upper = torch.triu_indices(block_size, block_size)
        self._upper = upper
        twice = torch.where(upper[0] == upper[1], 1.0, 2.0)
        whiteners, projectors = [], []
        for seeds in self.seeds.split(max(1, _ELEMENTS_AT_ONCE // (block_size * latent_dim))):
            basis = self.bases(seeds).double()
            eigenvalues, vectors = torch.linalg.eigh(basis.mT @ basis)
            # Directions that the basis does not span (a short cycle repeats columns) drop out, as in a pseudo-inverse.
            kept = eigenvalues > 1e-10 * eigenvalues[:, -1:].clamp_min(1e-300)
            whitener = vectors * torch.where(kept, eigenvalues.clamp_min(1e-300).rsqrt(), 0.0)[:, None, :]
            whiteners.append(whitener.float())
            if self.narrow:
                orthonormal = basis @ whitener
                projector = orthonormal @ orthonormal.mT
                projectors.append((projector[:, upper[0], upper[1]] * twice).float())
        self.whiteners_SPP = torch.cat(whiteners)
        """R with R R^T the (pseudo-)inverse of U^T U, so that U R is orthonormal."""
        self.projectors_SF = torch.cat(projectors) if self.narrow else None
        if self.narrow:  # small enough to write out, and rows of a plain table are gathered faster
            self._windows, self._start = self._windows[self._start], torch.arange(1 << seed_bits)

    def bases(self, seeds_M: Tensor) -> Tensor:
        """U(s), float32 [M, C, P]."""
        windows = self._windows.index_select(0, self._start.index_select(0, seeds_M))
        return windows.view(-1, self.block_size, self.latent_dim)

    def features(self, units_NC: Tensor) -> Tensor:
        """Products of two weights, float32 [N, F]; their inner product with `projectors_SF` is the score."""
        return units_NC[:, self._upper[0]] * units_NC[:, self._upper[1]]

    def scores(self, units_NC: Tensor) -> Tensor:
        """The share of every block's energy that every basis can express, float32 [N, S]."""
        if self.narrow:
            return self.features(units_NC) @ self.projectors_SF.T
        scores = torch.empty(len(units_NC), len(self.seeds))
        units = units_NC.bfloat16()
        for seeds in self.seeds.split(max(1, _ELEMENTS_AT_ONCE // (self.block_size * self.latent_dim))):
            orthonormal = torch.bmm(self.bases(seeds).bfloat16(), self.whiteners_SPP[seeds - 1].bfloat16())
            flat = orthonormal.permute(1, 0, 2).reshape(self.block_size, -1)
            parts = (units @ flat).float().square_().view(len(units), len(seeds), -1)
            scores[:, seeds[0] - 1 : seeds[-1]] = parts.sum(2)
        return scores

    def fit(self, blocks_MC: Tensor, seeds_M: Tensor, config: SeedLMConfig) -> tuple[Tensor, Tensor, Tensor]:
        """Quantises every block in the basis of its seed.

        Returns:
            squared errors, float32 [M]; exponents, float32 [M]; codes, float32 [M, P].
        """
        fitted = []
        size = max(1, _ELEMENTS_AT_ONCE // (self.block_size * self.latent_dim))
        for blocks, seeds in zip(blocks_MC.split(size), seeds_M.split(size), strict=True):
            basis, whitener = self.bases(seeds), self.whiteners_SPP.index_select(0, seeds - 1)
            inner = torch.bmm(blocks[:, None, :], basis)
            coefficients = torch.bmm(torch.bmm(inner, whitener), whitener.mT)[:, 0, :]
            half_range = 1 << (config.exponent_bits - 1)
            exponents = torch.ceil(torch.log2(coefficients.abs().amax(1) / _limit(config.bits)))
            best = None
            for lower in (0, 1):
                tried = (exponents - lower).clamp_(-half_range, half_range - 1)
                step = torch.exp2(tried)[:, None]
                codes = _codes(coefficients / step, config.bits)
                rebuilt = torch.bmm(basis, (code_values(codes, config.bits) * step)[:, :, None])[:, :, 0]
                errors = (blocks - rebuilt).square_().sum(1)
                if best is None:
                    best = errors, tried, codes
                else:
                    better = errors < best[0]
                    best = (
                        torch.where(better, errors, best[0]),
                        torch.where(better, tried, best[1]),
                        torch.where(better[:, None], codes, best[2]),
                    )
            fitted.append(best)
        return tuple(torch.cat(parts) for parts in zip(*fitted, strict=True))


@lru_cache(maxsize=2)
def _bank(block_size: int, latent_dim: int, seed_bits: int) -> _Bank:
    return _Bank(block_size, latent_dim, seed_bits)


class _Cells:
    """Directions on the sphere, and for each the seeds whose bases come close to it."""

    def __init__(self, bank: _Bank) -> None:
        generator = torch.Generator().manual_seed(8)
        centres = torch.randn(_CELLS, bank.block_size, generator=generator)
        self.centres_NC = centres / centres.norm(dim=1, keepdim=True)
        threshold, self.lists = None, []
        for some in self.centres_NC.split(64):
            scores = bank.scores(some)
            if threshold is None:  # the same for all cells: a list covers a ball of one size around its centre
                threshold = scores.flatten().kthvalue(scores.numel() - len(some) * _LIST_SEEDS).values
            rows, columns = _nonzero(scores > threshold)
            self.lists += columns.int().split(torch.bincount(rows, minlength=len(some)).tolist())

    def nearest(self, units_NC: Tensor) -> Tensor:
        """The cell of every direction, up to its sign; int64 [N]."""
        # One buffer for all parts: a fresh one each time fragments the heap, to gigabytes for a few million weights.
        buffer, found = torch.empty(2048, len(self.centres_NC)), torch.empty(len(units_NC), dtype=torch.int64)
        for begin in range(0, len(units_NC), len(buffer)):
            part = units_NC[begin : begin + len(buffer)]
            scores = torch.matmul(part, self.centres_NC.T, out=buffer[: len(part)]).abs_()
            found[begin : begin + len(part)] = _argmax(scores)
        return found


@lru_cache(maxsize=2)
def _cells(block_size: int, latent_dim: int, seed_bits: int) -> _Cells:
    return _Cells(_bank(block_size, latent_dim, seed_bits))


# --------------------------------------------------------------------------------------------------------- the search


def _nonzero(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of what is set, in row-major order; many times the speed of `torch.nonzero` on sparse masks."""
    places = torch.from_numpy(np.flatnonzero(mask.numpy()))
    return places // mask.shape[1], places % mask.shape[1]


def _argmax(scores_NS: Tensor) -> Tensor:
    """Column of every row's maximum, the first in a tie; numpy's is many times faster here than torch's."""
    return torch.from_numpy(scores_NS.numpy().argmax(1))


def _choose(
    bank: _Bank, blocks_NC: Tensor, energy_N: Tensor, scored: list[tuple[Tensor, Tensor]], config: SeedLMConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Picks each block's seed among those scored.

    Args:
        scored: runs of consecutive blocks: scores [n, L] and the L seeds, ascending, that they belong to.

    Returns:
        seeds, int64 [N]; exponents, float32 [N]; codes, float32 [N, P].
    """
    leaders = torch.cat([seeds[_argmax(scores)] for scores, seeds in scored])
    reach = bank.fit(blocks_NC, leaders, config)[0] / energy_N
    least = 1.0 - reach - (_FLOAT32_SLACK if bank.narrow else _BFLOAT16_SLACK)
    rows, seeds, begin = [], [], 0
    for scores, listed in scored:
        floor = torch.minimum(least[begin : begin + len(scores)], scores.amax(1))
        row, column = _nonzero(scores >= floor[:, None])
        crowded = torch.bincount(row, minlength=len(scores)) > config.candidates
        if crowded.any():
            kept = ~crowded[row]
            best = scores[crowded].topk(config.candidates, dim=1).indices.sort(dim=1).values
            crowded_rows = torch.nonzero(crowded)[:, 0].repeat_interleave(config.candidates)
            row, column = torch.cat([row[kept], crowded_rows]), torch.cat([column[kept], best.flatten()])
        rows.append(row + begin)
        seeds.append(listed[column])
        begin += len(scores)
    rows, seeds = torch.cat(rows), torch.cat(seeds)
    errors, exponents, codes = bank.fit(blocks_NC[rows], seeds, config)
    # The pairs of a block are in order of their seeds: the first of least error is the lowest such seed.
    least_error = torch.full((begin,), math.inf).scatter_reduce_(0, rows, errors, "amin")
    winners = torch.nonzero(errors == least_error[rows])[:, 0]
    first = torch.full((begin,), len(rows)).scatter_reduce_(0, rows[winners], winners, "amin")
    return seeds[first], exponents[first], codes[first]


def _search(blocks_NC: Tensor, config: SeedLMConfig, on_blocks: Progress) -> tuple[Tensor, Tensor, Tensor]:
    """Finds seeds, exponents and codes of all blocks; shapes as `_choose`."""
    key = config.block_size, config.latent_dim, config.seed_bits
    bank = _bank(*key)
    energy = blocks_NC.square().sum(1)
    # A block of zeros gets some direction, so that its scores do not all tie.
    units = torch.where(energy[:, None] > 0, blocks_NC / energy.sqrt()[:, None], config.block_size**-0.5)
    energy = energy.clamp_min(1e-30)
    seeds = torch.empty(len(blocks_NC), dtype=torch.int64)
    exponents = torch.empty(len(blocks_NC))
    codes = torch.empty(len(blocks_NC), config.latent_dim)
    lists_pay = bank.narrow and len(blocks_NC) >= 2 * _CELLS and len(bank.seeds) >= 4 * _LIST_SEEDS
    if config.search is SeedSearch.exhaustive or not lists_pay:
        # Wide blocks build all bases once per batch, so there the batches are larger.
        batch = max(1, (_SCORES_AT_ONCE if bank.narrow else 8 * _SCORES_AT_ONCE) // len(bank.seeds))
        for rows in torch.arange(len(blocks_NC)).split(batch):
            scored = [(bank.scores(units[rows]), bank.seeds)]
            seeds[rows], exponents[rows], codes[rows] = _choose(bank, blocks_NC[rows], energy[rows], scored, config)
            on_blocks(len(rows))
        return seeds, exponents, codes
    cells = _cells(*key)
    cell = cells.nearest(units)
    by_cell = torch.argsort(cell, stable=True).split(torch.bincount(cell, minlength=_CELLS).tolist())
    for begin in range(0, _CELLS, _CELLS_AT_ONCE):
        scored = []
        for number in range(begin, begin + _CELLS_AT_ONCE):
            if len(by_cell[number]):
                listed = cells.lists[number].long()
                scores = bank.features(units[by_cell[number]]) @ bank.projectors_SF.index_select(0, listed).T
                scored.append((scores, listed + 1))
        if scored:
            rows = torch.cat(by_cell[begin : begin + _CELLS_AT_ONCE])
            seeds[rows], exponents[rows], codes[rows] = _choose(bank, blocks_NC[rows], energy[rows], scored, config)
            on_blocks(len(rows))
    return seeds, exponents, codes


# ---------------------------------------------------------------------------------------------------------- the codec


def _scale_bits(flat: Tensor, config: SeedLMConfig) -> int:
    """bfloat16 pattern of the scale that brings typical blocks to exponent 0 and keeps the largest in range."""
    top = 2.0 ** ((1 << (config.exponent_bits - 1)) - 1)
    typical = max(float(flat.double().square().mean().sqrt()), float(flat.abs().max()) / top)
    return int(_bfloat16_bits(torch.tensor(_TYPICAL * typical / _limit(config.bits)))[0])


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

        `importance` and `seed` have no influence: all weights count alike, and nothing here is drawn at random.
        """
        scales, blocks = [], []
        for name, matrix in weights.items():
            if matrix.ndim != 2 or matrix.numel() == 0:
                raise CodecError(f"seedlm takes matrices, not shape {tuple(matrix.shape)}", where=name)
            if not torch.isfinite(matrix).all():
                raise CodecError("the tensor holds NaN or infinite values", where=name, fix="train the model anew")
            flat = matrix.detach().float().reshape(-1)
            scales.append(np.array([_scale_bits(flat, config)], dtype=np.uint16))
            flat = nn.functional.pad(flat, (0, -flat.numel() % config.block_size))
            scale = float(bfloat16_values(scales[-1])[0])
            blocks.append((flat / (scale or 1.0)).view(-1, config.block_size))
        counts = [len(part) for part in blocks]
        remaining = sum(matrix.numel() for matrix in weights.values())

        def on_blocks(count: int) -> None:
            nonlocal remaining
            finished = min(count * config.block_size, remaining)
            remaining -= finished
            if on_progress is not None:
                on_progress(finished)

        with torch.no_grad():
            found = _search(torch.cat(blocks), config, on_blocks) if blocks else (torch.empty(0),) * 3
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
            levels = round_through(units, code_values(_codes(units.detach(), self._config.bits), self._config.bits))
            scaled = levels * getattr(self, f"steps_{number}") * self._scale(number)
            flat = torch.bmm(getattr(self, f"bases_{number}"), scaled[:, :, None]).reshape(-1)
            shape = self._group.tensors[name].shape
            result[name] = flat[: math.prod(shape)].view(shape)
        return result

    def export(self) -> EncodedGroup:
        tensors = {}
        for number, name in enumerate(self._names):
            tensor = self._group.tensors[name]
            codes = _codes(self._units(number).detach(), self._config.bits).cpu()
            changed = {
                "codes": _stream(codes, self._config.bits),
                "scale": Stream(values=_bfloat16_bits(self.scales[number].detach().cpu()), bits=16),
            }
            tensors[name] = EncodedTensor(shape=tensor.shape, streams={**tensor.streams, **changed})
        return EncodedGroup(codec=self._group.codec, settings=self._group.settings, tensors=tensors)
