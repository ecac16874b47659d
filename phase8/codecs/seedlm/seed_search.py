"""The search of SeedLM: which seed, exponent and codes describe a block of weights with the least error.

The share of a block's energy |w|^2 that the basis U(s) of a seed can express is w^T P_s w / |w|^2, P_s the projector on
U(s): an inner product of two vectors of C (C + 1) / 2 numbers, so that one matrix product scores many blocks against
many seeds. For wide blocks (C > 16) the scores are |Q_s^T w|^2, Q_s an orthonormal basis, in bfloat16. At 1 bit a seed
with one pattern of signs is a single vector up to its length, and the patterns are scored one by one, as bases of one
vector each: what is scored is then what is stored, but for the power of two.

The `candidates` best-scoring ones are compared exactly, with *quantised* coefficients; the least squared error wins,
the lowest seed in a tie. An error comes from the coefficients and the Gram matrix U^T U alone; without importances both
that matrix and (U^T U)^-1 U^T, which gives the coefficients, are looked up. Where weights have importances d_c, the
coefficients are those of least weighted squared error and the comparison is of weighted errors; the scores stay plain.

- `exhaustive` scores all 2^K - 1 seeds for every block, and also compares all those exactly whose error without
  quantisation is below the best error with it: no seed is left out that could win.
- `fast` puts the blocks, whose directions have only C - 1 degrees of freedom, into cells around fixed random
  directions, and scores only the seeds listed for the cell: those whose bases come close to its centre. The centres
  are mirror images of each other, so that the signs of a block's weights and a small matrix product give its cell. It
  takes exhaustive search where lists do not pay: few blocks, few seeds, or C > 16, where all directions are far apart.

Every block's result depends on the other blocks of the call only through the rounding of matrix products; it does not
depend on the number of threads. A cell's blocks are cut into pieces of at most 128; pieces of nearly equal length are
scored together, eight in one batched product, and a thread takes 16 pieces at a time. Calls that large rarely wait for
the interpreter's lock, and every thread keeps its large arrays: allocated anew, small results that stay would lie
between them and hold all their memory.

Example: a block (3, -1, 0.5, ...) at C = 8 goes to one of 8,192 cells, is scored against the 1,792 entries of its list
out of 65,535, and the 8 best are compared exactly.

Shape legend: N blocks; E entries (a seed's basis, or at 1 bit one vector of it); M pairs of a block and an entry;
C weights of a block; P coefficients of an entry; F numbers of an entry's score; L entries of a cell's list.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from phase8.codecs.base import Progress
from phase8.codecs.seedlm import lfsr
from phase8.codecs.seedlm.decode import code_values
from phase8.codecs.seedlm.settings import SeedLMConfig, SeedSearch
from phase8.lossless.bitpack import narrowest

T = TypeVar("T")

_LEAST_BLOCKS = 8192  # for fewer the cells' lists do not pay
_SHORT = 8  # widest block with more cells and shorter lists: the wider the blocks, the less more cells help
_CELLS_SHORT, _CELLS_LONG = 8192, 4096
_LIST_SHORT, _LIST_LONG, _LIST_WORDS = 28, 48, 24  # length of a cell's list / C^2
_LIST_STEP = 16  # list lengths are multiples of it, so that lists divide into groups of equal size
_CANDIDATES = {1: 128, 2: 64, 3: 32}  # by bits; measured: with twice as many the error falls by less than 0.1 %
_FEW_CANDIDATES, _WORD_CANDIDATES = 8, 12  # more bits; words
_WEIGHTED_FACTOR = 4  # more candidates where the scores leave out the importances
_WORD_SIGNS = 4  # most coefficients of 1 bit whose patterns of signs are scored one by one
_MIRRORED = 3  # weights whose signs are part of the cell's number
_LLOYD_STEPS = 12
_PIECE = 128  # most blocks of a cell that are scored at once
_PIECES_AT_ONCE, _PIECES_A_TASK = 8, 16
_NARROW = 16  # widest block that is scored by its products of two weights
_SCORES_AT_ONCE = 1 << 23
_CACHED_SCORES = 1 << 20  # of 4 bytes: a processor core's share of the last cache
_ELEMENTS_AT_ONCE = 1 << 22
_PAIRS_AT_ONCE = 1 << 13
_RIDGE = 1e-6  # of the mean diagonal of U^T U
_FLOAT32_SLACK = 1e-5  # of |w|^2: more than the scores' rounding error
_BFLOAT16_SLACK = 1e-2


def limit(bits: int) -> float:
    """Largest |t| / 2^e that a code stands for with its usual rounding error."""
    return float(1 << bits) if bits <= 2 else (1 << (bits - 1)) - 0.5


def codes_of(x: Tensor, bits: int) -> Tensor:
    """Nearest codes, float, 0 .. 2^bits - 1, of coefficients divided by 2^e."""
    half = 1 << (bits - 1)
    nearest = torch.floor(x / 2) + half if bits <= 2 else torch.round(x) + half
    return nearest.clamp_(0, 2 * half - 1)


class _Scratch(threading.local):
    """Arrays of each thread that are used again: large ones that come and go cost more in page faults than in sums."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Float32 of this shape with arbitrary content, until the next `take` of this name."""
        size = math.prod(shape)
        if name not in self._memory or self._memory[name].numel() < size:
            self._memory[name] = torch.empty(size)
        return self._memory[name][:size].view(shape)


# ---------------------------------------------------------------------------------------------------------- the bases


class _Bank:
    """All entries of one setting (C, P, K, as words or not), and what scoring and fitting them needs."""

    def __init__(self, block_size: int, latent_dim: int, seed_bits: int, words: bool) -> None:
        self.block_size, self.words, self.narrow = block_size, words, block_size <= _NARROW
        self.seeds = (1 << seed_bits) - 1
        patterns = [[1.0 - 2.0 * (word >> p & 1) for p in range(latent_dim)] for word in range(1 << latent_dim - 1)]
        self.signs_WP = torch.tensor(patterns) if words else torch.empty(1, 0)
        """At 1 bit the patterns of signs, up to an overall sign: that of the last coefficient is +."""
        self.latent_dim = 1 if words else latent_dim
        self.entries = self.seeds * len(self.signs_WP)
        numbers, start = lfsr.wave(seed_bits, block_size * latent_dim)
        self._windows = torch.from_numpy(numbers.copy()).unfold(0, block_size * latent_dim, 1)
        self._start = torch.from_numpy(start[1:].copy())
        self._upper = torch.triu_indices(block_size, block_size)
        twice = torch.where(self._upper[0] == self._upper[1], 1.0, 2.0)
        whiteners = []
        if self.narrow:  # small enough to write out
            self.scored_EF = torch.empty(self.entries, block_size if words else self._upper.shape[1])
            self._inverses_EPC = torch.empty(self.entries, self.latent_dim, block_size)
            """(U^T U)^-1 U^T, with a ridge of 1e-6 of the mean diagonal, which the Gram matrices U^T U have too."""
            self._grams_EPP = torch.empty(self.entries, self.latent_dim, self.latent_dim)
        for places in self._parts():
            basis = self._all_bases(places).double()
            gram = basis.mT @ basis
            eigenvalues, vectors = torch.linalg.eigh(gram)
            # Directions that the basis does not span (a short cycle repeats columns) drop out, as in a pseudo-inverse.
            kept = eigenvalues > 1e-10 * eigenvalues[:, -1:].clamp_min(1e-300)
            whitener = vectors * torch.where(kept, eigenvalues.clamp_min(1e-300).rsqrt(), 0.0)[:, None, :]
            if not self.narrow:
                whiteners.append(whitener.bfloat16())
                continue
            first = int(places[0]) * len(self.signs_WP)
            entries = slice(first, first + len(basis))
            orthonormal = basis @ whitener
            if words:
                self.scored_EF[entries] = orthonormal[:, :, 0]
            else:
                projector = orthonormal @ orthonormal.mT
                self.scored_EF[entries] = projector[:, self._upper[0], self._upper[1]] * twice
            ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1) + 1e-30
            gram.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
            inverse = (vectors / (eigenvalues + ridge[:, None]).clamp_min(1e-30)[:, None, :]) @ vectors.mT
            self._inverses_EPC[entries], self._grams_EPP[entries] = inverse @ basis.mT, gram
        if not self.narrow:
            self._whiteners_SPP = torch.cat(whiteners)
            """R with R R^T the (pseudo-)inverse of U^T U, so that U R is orthonormal."""

    def _parts(self) -> tuple[Tensor, ...]:
        elements = self._windows.shape[1] * max(self.block_size, len(self.signs_WP))
        return torch.arange(self.seeds).split(max(1, _ELEMENTS_AT_ONCE // 16 // elements))

    def _windows_of(self, places: Tensor) -> Tensor:
        """The bases of the seeds `places` + 1, float32 [S, C, latent_dim]."""
        windows = self._windows.index_select(0, self._start.index_select(0, places))
        return windows.view(len(places), self.block_size, -1)

    def _all_bases(self, places: Tensor) -> Tensor:
        """The bases of all entries of the seeds `places` + 1, float32 [E, C, P]."""
        bases = self._windows_of(places)
        return (bases @ self.signs_WP.T).mT.reshape(-1, self.block_size, 1) if self.words else bases

    def _bases(self, entries: Tensor) -> Tensor:
        """The bases of some entries, float32 [M, C, P]."""
        if not self.words:
            return self._windows_of(entries)
        signs = self.signs_WP[entries % len(self.signs_WP)]
        return torch.bmm(self._windows_of(entries // len(self.signs_WP)), signs[:, :, None])

    def features(self, blocks_CN: Tensor, scratch: _Scratch) -> Tensor:
        """What is multiplied by `scored_EF`: the weights for words, else the products of two weights; [F, N]."""
        if self.words:
            return blocks_CN
        shape = self._upper.shape[1], blocks_CN.shape[1]
        one, other = scratch.take("features", *shape), scratch.take("factors", *shape)
        torch.index_select(blocks_CN, 0, self._upper[0], out=one)
        torch.index_select(blocks_CN, 0, self._upper[1], out=other)
        return one.mul_(other)

    def scores(self, units_NC: Tensor, scratch: _Scratch) -> Tensor:
        """The share of every block's energy that each entry can express; float32 [N, E]."""
        if self.narrow:
            scores = scratch.take("scores", len(units_NC), self.entries)
            torch.mm(self.features(units_NC.T.contiguous(), scratch).T, self.scored_EF.T, out=scores)
            return scores.square_() if self.words else scores
        scores, units = torch.empty(len(units_NC), self.entries), units_NC.bfloat16()
        for places in self._parts():
            orthonormal = torch.bmm(self._windows_of(places).bfloat16(), self._whiteners_SPP[places])
            flat = orthonormal.permute(1, 0, 2).reshape(self.block_size, -1)
            parts = (units @ flat).float().square_().view(len(units), len(places), -1)
            scores[:, places[0] : places[-1] + 1] = parts.sum(2)
        return scores

    def fit(
        self,
        blocks_NC: Tensor,
        rows_M: Tensor,
        entries_M: Tensor,
        config: SeedLMConfig,
        roots_NC: Tensor | None,
        scratch: _Scratch,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantises the blocks `rows_M` in the bases `entries_M`.

        Args:
            roots_NC: square roots of the weights' importances.

        Returns:
            squared errors, float32 [M]; exponents, float32 [M]; coefficients before they are rounded, float32 [P, M].
        """
        fitted = []
        energies_N = (blocks_NC if roots_NC is None else blocks_NC * roots_NC).square().sum(1)
        size = max(1, min(_PAIRS_AT_ONCE, _ELEMENTS_AT_ONCE // (self.block_size * self.latent_dim)))
        for rows, entries in zip(rows_M.split(size), entries_M.split(size), strict=True):
            blocks = scratch.take("blocks", len(rows), self.block_size)
            torch.index_select(blocks_NC, 0, rows, out=blocks)
            # Gathered, the pairs lie along the last axis: every operation is then one long loop over them.
            if self.narrow and roots_NC is None:
                inverses = scratch.take("bases", len(rows), self.latent_dim, self.block_size)
                torch.index_select(self._inverses_EPC, 0, entries, out=inverses)
                coefficients = torch.bmm(inverses, blocks[:, :, None])[:, :, 0].T.contiguous()
                grams = scratch.take("gathered", len(rows), self.latent_dim, self.latent_dim)
                torch.index_select(self._grams_EPP, 0, entries, out=grams)
                grams = scratch.take("grams", *grams.shape[1:], len(rows)).copy_(grams.permute(1, 2, 0))
                inner = _product(grams, coefficients, scratch)
            else:
                basis = self._bases(entries)
                if roots_NC is not None:
                    roots = roots_NC.index_select(0, rows)
                    basis, blocks = basis * roots[:, :, None], blocks * roots
                inner = torch.bmm(blocks[:, None, :], basis)[:, 0, :].T.contiguous()
                grams = torch.bmm(basis.mT, basis).permute(1, 2, 0).contiguous()
                coefficients = _solve(grams, inner).nan_to_num_()
            energies = energies_N.index_select(0, rows)
            fitted.append((*self._quantise(energies, inner, grams, coefficients, config, scratch), coefficients))
        return tuple(torch.cat(parts, dim=-1) for parts in zip(*fitted, strict=True))

    def _quantise(
        self,
        energies_M: Tensor,
        inner_PM: Tensor,
        grams_PPM: Tensor,
        coefficients_PM: Tensor,
        config: SeedLMConfig,
        scratch: _Scratch,
    ) -> tuple[Tensor, Tensor]:
        """Errors and exponents of the rounded t: |w - U t|^2 = |w|^2 + t^T (U^T U t - 2 U^T w)."""
        half_range = 1 << (config.exponent_bits - 1)
        # A single sign is exact at 2^e, and its error no larger below than above.
        largest = 1.0 if self.words else limit(config.bits)
        exponents = torch.ceil(torch.log2(coefficients_PM.abs().amax(0) / largest))
        twice_PM, found = 2 * inner_PM, []
        for lower in (0, 1):
            tried = (exponents - lower).clamp_(-half_range, half_range - 1)
            step = torch.exp2(tried)
            rounded = code_values(codes_of(coefficients_PM / step, config.bits), config.bits) * step
            found.append((energies_M + (rounded * (_product(grams_PPM, rounded, scratch) - twice_PM)).sum(0), tried))
        (errors, first), (other_errors, second) = found
        return torch.minimum(errors, other_errors), torch.where(other_errors < errors, second, first)

    def seeds_and_codes(self, entries_N: Tensor, codes_PN: Tensor) -> tuple[Tensor, Tensor]:
        """From the entries and the codes in their bases to seeds, int64 [N], and codes, float32 [N, P]."""
        if not self.words:
            return entries_N + 1, codes_PN.T
        signs = self.signs_WP[entries_N % len(self.signs_WP)]
        return entries_N // len(self.signs_WP) + 1, codes_of(signs * code_values(codes_PN.T, 1), 1)


def _product(grams_PPM: Tensor, x_PM: Tensor, scratch: _Scratch) -> Tensor:
    """M products of a matrix and a vector, float32 [P, M]."""
    return torch.mul(grams_PPM, x_PM, out=scratch.take("products", *grams_PPM.shape)).sum(1)


def _solve(gram_PPM: Tensor, inner_PM: Tensor) -> Tensor:
    """Solves M small positive (semi-)definite systems by elimination, with a ridge."""
    gram, right, size = gram_PPM.clone(), inner_PM.clone(), len(inner_PM)
    diagonal = gram.diagonal().T
    diagonal += _RIDGE * diagonal.mean(0) + 1e-30
    for p in range(size):
        for row in range(p + 1, size):
            factor = gram[row, p] / gram[p, p]
            gram[row] -= factor * gram[p]
            right[row] -= factor * right[p]
    for p in reversed(range(size)):
        for column in range(p + 1, size):
            right[p] -= gram[p, column] * right[column]
        right[p] /= gram[p, p]
    return right


@lru_cache(maxsize=2)
def _bank(block_size: int, latent_dim: int, seed_bits: int, words: bool) -> _Bank:
    return _Bank(block_size, latent_dim, seed_bits, words)


# ---------------------------------------------------------------------------------------------------------- the cells


def _list_length(bank: _Bank) -> int:
    """Length of a cell's list: the wider the blocks, the farther a cell's blocks are from its centre."""
    usual = _LIST_SHORT if bank.block_size <= _SHORT else _LIST_LONG
    length = (_LIST_WORDS if bank.words else usual) * bank.block_size**2
    return -(-length // _LIST_STEP) * _LIST_STEP


def _units(x_NC: Tensor) -> Tensor:
    """The directions; a vector of zeros gets some direction, so that its scores do not all tie."""
    norm = x_NC.square().sum(1, keepdim=True).sqrt()
    return torch.where(norm > 0, x_NC / norm, x_NC.shape[1] ** -0.5)


class _Cells:
    """Directions on the sphere, and for each the entries whose bases come close to it."""

    def __init__(self, bank: _Bank) -> None:
        self._mirrored = min(_MIRRORED, bank.block_size - 1)
        scratch = _Scratch()
        self.count = _CELLS_SHORT if bank.block_size <= _SHORT else _CELLS_LONG
        generator, count = torch.Generator().manual_seed(8), self.count >> self._mirrored
        samples = self._folded(_units(torch.randn(64 * count, bank.block_size, generator=generator)))
        centres = samples[:count]
        for _ in range(_LLOYD_STEPS):
            sums = torch.zeros_like(centres).index_add_(0, _nearest(samples, centres, scratch), samples)
            centres = _units(torch.where(sums.any(1, keepdim=True), sums, centres))
        self._centres_BC = centres
        # Cell number: the signs of the first weights, then the centre.
        signs = 1.0 - 2.0 * (torch.arange(1 << self._mirrored)[:, None] >> torch.arange(self._mirrored) & 1)
        mirrored = self._centres_BC.repeat(len(signs), 1, 1).view(len(signs), -1, bank.block_size)
        mirrored[:, :, : self._mirrored] *= signs[:, None, :]
        all_centres = mirrored.view(-1, bank.block_size)
        length = _list_length(bank)
        self.lists_BL = np.empty((self.count, length), dtype=narrowest((bank.entries - 1).bit_length()))
        """The entries of every cell, ascending."""
        at_once, groups = max(1, _CACHED_SCORES // bank.entries), 4 * length

        def fill(first: int) -> None:
            some = all_centres[first : first + at_once]
            scores = bank.scores(some, scratch)
            for cell, row in enumerate(scores.numpy(), start=first):
                # The maxima of groups give a floor that somewhat more entries reach: far fewer than all to choose from.
                maxima = row[: len(row) // groups * groups].reshape(-1, groups).max(0)
                high = np.flatnonzero(row >= _largest(maxima, length))
                self.lists_BL[cell] = high[np.flatnonzero(row[high] >= _largest(row[high], length))[:length]]

        for _ in _in_threads(fill, range(0, self.count, at_once)):
            pass

    def _folded(self, units_NC: Tensor) -> Tensor:
        """The direction, up to its sign, with the first weights' signs taken off."""
        folded = units_NC * torch.where(units_NC[:, -1:] < 0, -1.0, 1.0)
        folded[:, : self._mirrored].abs_()
        return folded

    def nearest(self, blocks_NC: Tensor, scratch: _Scratch) -> Tensor:
        """The cell of every block, whatever its length; int64 [N]."""
        powers = 1 << torch.arange(self._mirrored)
        negative = (blocks_NC[:, : self._mirrored] < 0) ^ (blocks_NC[:, -1:] < 0)
        centre = _nearest(self._folded(blocks_NC), self._centres_BC, scratch)
        return (negative * powers).sum(1) * len(self._centres_BC) + centre


def _largest(x: np.ndarray, count: int) -> np.float32:
    """The value that just `count` of the numbers reach, more in a tie."""
    return np.partition(x, len(x) - count)[len(x) - count]


def _nearest(folded_NC: Tensor, centres_BC: Tensor, scratch: _Scratch) -> Tensor:
    """The centre with the largest inner product, the first in a tie; int64 [N]."""
    found = torch.empty(len(folded_NC), dtype=torch.int64)
    size = _CACHED_SCORES // len(centres_BC)
    for some, places in zip(folded_NC.split(size), found.split(size), strict=True):
        scores = torch.mm(some, centres_BC.T, out=scratch.take("scores", len(some), len(centres_BC)))
        scores.numpy().argmax(1, out=places.numpy())  # many times faster here than torch's
    return found


@lru_cache(maxsize=2)
def _cells(block_size: int, latent_dim: int, seed_bits: int, words: bool) -> _Cells:
    return _Cells(_bank(block_size, latent_dim, seed_bits, words))


# --------------------------------------------------------------------------------------------------------- the search


def _above(scores_NE: Tensor, floor_N: np.ndarray) -> tuple[Tensor, Tensor]:
    """Rows and columns of the scores that reach the row's floor, in row-major order; numpy's way is the quicker."""
    places = torch.from_numpy(np.flatnonzero(scores_NE.numpy() >= floor_N[:, None]))
    rows = places // scores_NE.shape[1]
    return rows, places - rows * scores_NE.shape[1]


def _leaders(scores_NE: Tensor, count: int, scratch: _Scratch) -> Tensor:
    """Columns, ascending, of about each row's `count` largest scores; int64 [N, at least min(count, E)].

    The columns are dealt out to groups, at least eight for each one wanted, and the best groups give their best column:
    the largest score always, the next ones unless they share a group with a larger one.
    """
    columns = scores_NE.shape[1]
    depth = min(_LIST_STEP, columns // (8 * count))
    if depth < 2:
        return scores_NE.topk(min(count, columns), dim=1).indices.sort(dim=1).values
    depth = 1 << depth.bit_length() - 1
    groups = columns // depth
    parts = scores_NE[:, : depth * groups].view(len(scores_NE), depth, groups)
    # A group's number takes the last bits of its maximum, as the quickest selection here is that of whole numbers.
    numbers = (1 << groups.bit_length()) - 1
    tagged = torch.amax(parts, 1, out=scratch.take("maxima", len(parts), groups)).numpy().view(np.int32)
    tagged &= ~numbers
    tagged |= np.arange(groups, dtype=np.int32)
    tagged.partition(groups - count, axis=1)
    best = torch.from_numpy((tagged[:, groups - count :] & numbers).astype(np.int64))
    chosen = scratch.take("chosen", len(parts), depth, count)
    place = torch.gather(parts, 2, best[:, None, :].expand(-1, depth, -1), out=chosen).max(1).indices
    found = [(place * groups + best).sort(dim=1).values]
    if depth * groups < columns:  # the columns that are in no group
        found.append(torch.arange(depth * groups, columns).expand(len(scores_NE), -1))
    return torch.cat(found, dim=1)


def _least(errors_M: Tensor, rows_M: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Each row's least error, float32 [N], and the place of its first occurrence, int64 [N]; `rows_M` ascends."""
    starts = np.searchsorted(rows_M.numpy(), np.arange(count))
    least = torch.from_numpy(np.minimum.reduceat(errors_M.numpy(), starts))
    places = torch.where(errors_M == least[rows_M], torch.arange(len(rows_M)), len(rows_M))
    return least, torch.from_numpy(np.minimum.reduceat(places.numpy(), starts))


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that stay: what MKL allocates for a thread's products outlives the thread. A fork has none of them."""
    return ThreadPoolExecutor(threads)


def _in_threads(work: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
    """The results of `work`, in order, from as many threads as torch may use, each without threads of its own.

    What a call does must not depend on the thread. The operations are too small to divide, but large enough that the
    threads rarely wait for the interpreter's lock.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _pool(threads, os.getpid()).map(work, numbers)
    finally:
        torch.set_num_threads(threads)


class _Search:
    """The blocks of one call and what is found for them."""

    def __init__(self, blocks_NC: Tensor, roots_NC: Tensor | None, config: SeedLMConfig) -> None:
        self._config, self._blocks, self._roots = config, blocks_NC, roots_NC
        words = config.bits == 1 and config.block_size <= _NARROW and config.latent_dim <= _WORD_SIGNS
        self._key = config.block_size, config.latent_dim, config.seed_bits, words
        self._bank = _bank(*self._key)
        usual = _WORD_CANDIDATES if words else _CANDIDATES.get(config.bits, _FEW_CANDIDATES)
        self._candidates = config.candidates or usual * (1 if roots_NC is None else _WEIGHTED_FACTOR)
        self._scratch = _Scratch()
        self.seeds = torch.empty(len(blocks_NC), dtype=torch.int64)
        self.exponents = torch.empty(len(blocks_NC))
        self.codes = torch.empty(len(blocks_NC), config.latent_dim)

    def run(self, on_blocks: Progress) -> None:
        bank, exhaustive = self._bank, self._config.search is SeedSearch.exhaustive
        lists_pay = bank.narrow and bank.latent_dim < bank.block_size and bank.entries >= 4 * _list_length(bank)
        if exhaustive or not lists_pay or len(self._blocks) < _LEAST_BLOCKS:
            # Wide blocks build all bases once per batch, so there the batches are larger.
            scores = _SCORES_AT_ONCE // 4 if bank.narrow else 8 * _SCORES_AT_ONCE
            if exhaustive and self._roots is not None:  # nearly all pairs are compared
                scores = _SCORES_AT_ONCE // 8
            for rows in torch.arange(len(self._blocks)).split(max(1, scores // bank.entries)):
                self._settle(rows, *self._all(rows, exhaustive))
                on_blocks(len(rows))
            return
        cells = _cells(*self._key)
        cell = torch.empty(len(self._blocks), dtype=torch.int64)

        def assign(first: int) -> None:
            some = slice(first, first + _PIECE * _PIECES_A_TASK)
            cell[some] = cells.nearest(self._blocks[some], self._scratch)

        for _ in _in_threads(assign, range(0, len(cell), _PIECE * _PIECES_A_TASK)):
            pass
        order = torch.argsort(cell, stable=True)
        pieces = _pieces(np.bincount(cell.numpy(), minlength=cells.count))

        def work(first: int) -> int:
            found = []
            for begin in range(first, min(first + _PIECES_A_TASK, len(pieces)), _PIECES_AT_ONCE):
                found.append(self._listed(cells, order, pieces[begin : begin + _PIECES_AT_ONCE]))
            rows, entries = (torch.cat(parts) for parts in zip(*found, strict=True))
            pair_rows = torch.arange(len(rows)).repeat_interleave(entries.shape[1])
            self._settle(rows, pair_rows, entries.flatten())
            return len(rows)

        for count in _in_threads(work, range(0, len(pieces), _PIECES_A_TASK)):
            on_blocks(count)

    def _listed(self, cells: _Cells, order_N: Tensor, pieces: np.ndarray) -> tuple[Tensor, Tensor]:
        """The blocks of the pieces, and the entries to compare for each, after scoring those of their cells' lists."""
        bank, (cell, start, length) = self._bank, pieces.T
        within = np.arange(length[0])  # the first piece is the longest; its blocks' last one fills up the others
        rows = order_N[torch.from_numpy(start[:, None] + np.minimum(within, length[:, None] - 1))].flatten()
        listed = torch.from_numpy(cells.lists_BL[cell].astype(np.int32))
        features = bank.features(self._blocks.index_select(0, rows).T.contiguous(), self._scratch)
        features = features.view(-1, len(pieces), len(within)).permute(1, 2, 0)
        scored = self._scratch.take("scored", listed.numel(), features.shape[2])
        torch.index_select(bank.scored_EF, 0, listed.flatten(), out=scored)
        scores = self._scratch.take("scores", *features.shape[:2], listed.shape[1])
        torch.bmm(features, scored.view(*listed.shape, -1).mT, out=scores)
        if bank.words:
            scores.square_()
        columns = _leaders(scores.view(len(rows), -1), self._candidates, self._scratch).view(len(pieces), -1)
        entries = listed.gather(1, columns).view(len(rows), -1)
        real = torch.from_numpy((within < length[:, None]).ravel())
        return rows[real], entries[real].long()

    def _all(self, rows: Tensor, exhaustive: bool) -> tuple[Tensor, Tensor]:
        """The pairs to compare for the blocks `rows`, after scoring all entries."""
        blocks = self._blocks[rows]
        scores = self._bank.scores(_units(blocks), self._scratch)
        leaders = _leaders(scores, self._candidates, self._scratch)
        pair_rows, entries = torch.arange(len(rows)).repeat_interleave(leaders.shape[1]), leaders.flatten()
        if not exhaustive:
            return pair_rows, entries
        errors, _, _ = self._fit(rows, pair_rows, entries)
        least, _ = _least(errors, pair_rows, len(rows))
        if self._roots is not None:  # no weighted error is below the least weight times the plain one
            least = least / self._roots[rows].amin(1).square()
        slack = _FLOAT32_SLACK if self._bank.narrow else _BFLOAT16_SLACK
        floor = 1.0 - least / blocks.square().sum(1).clamp_min(1e-30) - slack
        return _above(scores, torch.minimum(floor, scores.amax(1)).numpy())

    def _fit(self, rows: Tensor, pair_rows: Tensor, entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        roots = None if self._roots is None else self._roots[rows]
        return self._bank.fit(self._blocks[rows], pair_rows, entries, self._config, roots, self._scratch)

    def _settle(self, rows: Tensor, pair_rows: Tensor, entries: Tensor) -> None:
        """Compares the pairs of the blocks `rows` exactly and keeps each block's best."""
        errors, exponents, coefficients = self._fit(rows, pair_rows, entries)
        _, best = _least(errors, pair_rows, len(rows))
        codes = codes_of(coefficients[:, best] / torch.exp2(exponents[best]), self._config.bits)
        self.seeds[rows], self.codes[rows] = self._bank.seeds_and_codes(entries[best], codes)
        self.exponents[rows] = exponents[best]


def _pieces(counts: np.ndarray) -> np.ndarray:
    """Cuts the cells' blocks, which stand cell by cell, into pieces, the longest first; cell, start and length of each.

    Pieces that follow one another are of nearly equal length, and can be scored in one product of matrices.
    """
    cut = -(-counts // _PIECE)
    cell = np.repeat(np.arange(len(counts)), cut)
    within = (np.arange(len(cell)) - np.repeat(cut.cumsum() - cut, cut)) * _PIECE
    start, length = (counts.cumsum() - counts)[cell] + within, np.minimum(_PIECE, counts[cell] - within)
    return np.stack([cell, start, length], axis=1)[np.argsort(-length, kind="stable")]


def search(
    blocks_NC: Tensor, config: SeedLMConfig, on_blocks: Progress, roots_NC: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the seed, exponent and codes of every block.

    Args:
        blocks_NC: the weights divided by the scale.
        on_blocks: called with the number of blocks finished since the last call.
        roots_NC: square roots of the importances of the weights' squared errors; without them all count alike.

    Returns:
        seeds, int64 [N]; exponents, float32 [N]; codes, float32 [N, P].
    """
    found = _Search(blocks_NC, roots_NC, config)
    found.run(on_blocks)
    return found.seeds, found.exponents, found.codes
