"""The search of SeedLM: which seed, exponent and codes describe a block of weights with the least error.

The share of a block's energy |w|^2 that the basis U(s) of a seed can express is w^T P_s w / |w|^2, P_s the projector on
U(s): an inner product of two vectors of C (C + 1) / 2 numbers, so that one matrix product scores many blocks against
many seeds. For wide blocks (C > 16) the scores are |Q_s^T w|^2, Q_s an orthonormal basis, in bfloat16. At 1 bit a seed
with one pattern of signs is a single vector up to its length, and the patterns are scored one by one, as bases of one
vector each: what is scored is then what is stored, but for the power of two.

The `candidates` best-scoring ones are compared exactly, with *quantised* coefficients; the least squared error wins,
the lowest seed in a tie. Where weights have importances d_c, the coefficients are those of least weighted squared error
and the comparison is of weighted errors; the scores stay plain.

- `exhaustive` scores all 2^K - 1 seeds for every block, and also compares all those exactly whose error without
  quantisation is below the best error with it: no seed is left out that could win.
- `fast` puts the blocks, whose directions have only C - 1 degrees of freedom, into cells around fixed random
  directions, and scores only the seeds listed for the cell: those whose bases come close to its centre. The centres
  are mirror images of each other, so that the signs of a block's weights and a small matrix product give its cell. It
  takes exhaustive search where lists do not pay: few blocks, few seeds, or C > 16, where all directions are far apart.

Every block's result depends on the other blocks of the call only through the rounding of matrix products; it does not
depend on the number of threads, each of which works on batches of cells of its own.

Shape legend: N blocks; E entries (a seed's basis, or at 1 bit one vector of it); M pairs of a block and an entry;
C weights of a block; P coefficients of an entry; F numbers of an entry's score; L entries of a cell's list.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from phase8.codecs import lfsr
from phase8.codecs.base import Progress
from phase8.codecs.decoders.seedlm import code_values
from phase8.config import SeedLMConfig, SeedSearch

_CELLS = 4096
_LIST_SUBSPACES, _LIST_WORDS = 48, 32  # mean length of a cell's list / C^2
_CANDIDATES = {1: 128, 2: 64, 3: 32}  # by bits; measured: with twice as many the error falls by less than 0.1 %
_FEW_CANDIDATES = 8  # more bits, and words
_WEIGHTED_FACTOR = 4  # more candidates where the scores leave out the importances
_WORD_SIGNS = 4  # most coefficients of 1 bit whose patterns of signs are scored one by one
_MIRRORED = 3  # weights whose signs are part of the cell's number
_LLOYD_STEPS = 12
_CELLS_AT_ONCE = 32
_BLOCKS_AT_ONCE = 64  # of a cell: their scores stay in the cache
_NARROW = 16  # widest block that is scored by its products of two weights
_SCORES_AT_ONCE = 1 << 23
_ELEMENTS_AT_ONCE = 1 << 22
_PAIRS_AT_ONCE = 1 << 13
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
        whiteners, scored = [], []
        for places in self._parts():
            basis = self._bases(places).double()
            eigenvalues, vectors = torch.linalg.eigh(basis.mT @ basis)
            # Directions that the basis does not span (a short cycle repeats columns) drop out, as in a pseudo-inverse.
            kept = eigenvalues > 1e-10 * eigenvalues[:, -1:].clamp_min(1e-300)
            whitener = vectors * torch.where(kept, eigenvalues.clamp_min(1e-300).rsqrt(), 0.0)[:, None, :]
            orthonormal = basis @ whitener
            if not self.narrow:
                whiteners.append(whitener.bfloat16())
            elif words:
                scored.append(orthonormal[:, :, 0].float())
            else:
                projector = orthonormal @ orthonormal.mT
                scored.append((projector[:, self._upper[0], self._upper[1]] * twice).float())
        if self.narrow:  # small enough to write out
            self.scored_EF = torch.cat(scored)
            self._table = torch.cat([self._bases(places) for places in self._parts()])
        else:
            self._whiteners_SPP = torch.cat(whiteners)
            """R with R R^T the (pseudo-)inverse of U^T U, so that U R is orthonormal."""

    def _parts(self) -> tuple[Tensor, ...]:
        return torch.arange(self.seeds).split(max(1, _ELEMENTS_AT_ONCE // (self.block_size * self._windows.shape[1])))

    def _bases(self, places: Tensor) -> Tensor:
        """The bases of all entries of the seeds `places` + 1, float32 [E, C, P]."""
        windows = self._windows.index_select(0, self._start.index_select(0, places))
        bases = windows.view(len(places), self.block_size, -1)
        if not self.words:
            return bases
        return (bases @ self.signs_WP.T).mT.reshape(-1, self.block_size, 1)

    def features(self, units_NC: Tensor) -> Tensor:
        """What is multiplied by `scored_EF`: the weights for words, else the products of two weights; [N, F]."""
        return units_NC if self.words else units_NC[:, self._upper[0]] * units_NC[:, self._upper[1]]

    def scores(self, units_NC: Tensor, scored_EF: Tensor | None = None) -> Tensor:
        """The share of every block's energy that each entry, of those given or of all, can express; float32 [N, E]."""
        if self.narrow:
            scores = self.features(units_NC) @ (self.scored_EF if scored_EF is None else scored_EF).T
            return scores.square_() if self.words else scores
        scores, units = torch.empty(len(units_NC), self.entries), units_NC.bfloat16()
        for places in self._parts():
            orthonormal = torch.bmm(self._bases(places).bfloat16(), self._whiteners_SPP[places])
            flat = orthonormal.permute(1, 0, 2).reshape(self.block_size, -1)
            parts = (units @ flat).float().square_().view(len(units), len(places), -1)
            scores[:, places[0] : places[-1] + 1] = parts.sum(2)
        return scores

    def fit(
        self, blocks_NC: Tensor, rows_M: Tensor, entries_M: Tensor, config: SeedLMConfig, roots_NC: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantises the blocks `rows_M` in the bases `entries_M`.

        Args:
            roots_NC: square roots of the weights' importances.

        Returns:
            squared errors, float32 [M]; exponents, float32 [M]; codes, float32 [P, M].
        """
        fitted = []
        size = max(1, min(_PAIRS_AT_ONCE, _ELEMENTS_AT_ONCE // (self.block_size * self.latent_dim)))
        for rows, entries in zip(rows_M.split(size), entries_M.split(size), strict=True):
            basis = self._table.index_select(0, entries) if self.narrow else self._bases(entries)
            blocks = blocks_NC.index_select(0, rows)
            if roots_NC is not None:
                roots = roots_NC.index_select(0, rows)
                basis, blocks = basis * roots[:, :, None], blocks * roots
            # From here on the pairs lie along the last axis: every operation is then one long loop over them.
            inner = torch.bmm(blocks[:, None, :], basis)[:, 0, :].T.contiguous()
            gram = torch.bmm(basis.mT, basis).permute(1, 2, 0).contiguous()
            fitted.append(self._quantise(blocks.square().sum(1), inner, gram, config))
        return tuple(torch.cat(parts, dim=-1) for parts in zip(*fitted, strict=True))

    def _quantise(
        self, energy_M: Tensor, inner_PM: Tensor, gram_PPM: Tensor, config: SeedLMConfig
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rounds the coefficients t, given |w|^2, U^T w and U^T U: |w - U t|^2 = |w|^2 + t^T (U^T U t - 2 U^T w)."""
        half_range = 1 << (config.exponent_bits - 1)
        # A single sign is exact at 2^e, and its error no larger below than above.
        largest = 1.0 if self.words else limit(config.bits)
        coefficients = _solve(gram_PPM, inner_PM).nan_to_num_()
        exponents = torch.ceil(torch.log2(coefficients.abs().amax(0) / largest))
        best: tuple[Tensor, ...] = ()
        for lower in (0, 1):
            tried = (exponents - lower).clamp_(-half_range, half_range - 1)
            step = torch.exp2(tried)
            codes = codes_of(coefficients / step, config.bits)
            rounded = code_values(codes, config.bits) * step
            errors = energy_M + (rounded * ((gram_PPM * rounded).sum(1) - 2 * inner_PM)).sum(0)
            found = errors, tried, codes
            if best:
                better = errors < best[0]
                found = tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))
            best = found
        return best

    def seeds_and_codes(self, entries_N: Tensor, codes_PN: Tensor) -> tuple[Tensor, Tensor]:
        """From the entries and the codes in their bases to seeds, int64 [N], and codes, float32 [N, P]."""
        if not self.words:
            return entries_N + 1, codes_PN.T
        signs = self.signs_WP[entries_N % len(self.signs_WP)]
        return entries_N // len(self.signs_WP) + 1, codes_of(signs * code_values(codes_PN.T, 1), 1)


def _solve(gram_PPM: Tensor, inner_PM: Tensor) -> Tensor:
    """Solves M small positive (semi-)definite systems by elimination, with a ridge of 1e-6 of the mean diagonal."""
    gram, right, size = gram_PPM.clone(), inner_PM.clone(), len(inner_PM)
    diagonal = gram.diagonal().T
    diagonal += 1e-6 * diagonal.mean(0) + 1e-30
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
    """Mean length of a cell's list: the wider the blocks, the farther a cell's blocks are from its centre."""
    return (_LIST_WORDS if bank.words else _LIST_SUBSPACES) * bank.block_size**2


def _units(x_NC: Tensor) -> Tensor:
    """The directions; a vector of zeros gets some direction, so that its scores do not all tie."""
    norm = x_NC.square().sum(1, keepdim=True).sqrt()
    return torch.where(norm > 0, x_NC / norm, x_NC.shape[1] ** -0.5)


class _Cells:
    """Directions on the sphere, and for each the entries whose bases come close to it."""

    def __init__(self, bank: _Bank) -> None:
        self._mirrored = min(_MIRRORED, bank.block_size - 1)
        generator, count = torch.Generator().manual_seed(8), _CELLS >> self._mirrored
        samples = self._folded(_units(torch.randn(64 * count, bank.block_size, generator=generator)))
        centres = samples[:count]
        for _ in range(_LLOYD_STEPS):
            sums = torch.zeros_like(centres).index_add_(0, _argmax(samples @ centres.T), samples)
            centres = _units(torch.where(sums.any(1, keepdim=True), sums, centres))
        self._centres_BC = centres
        # Cell number: the signs of the first weights, then the centre.
        signs = 1.0 - 2.0 * (torch.arange(1 << self._mirrored)[:, None] >> torch.arange(self._mirrored) & 1)
        mirrored = self._centres_BC.repeat(len(signs), 1, 1).view(len(signs), -1, bank.block_size)
        mirrored[:, :, : self._mirrored] *= signs[:, None, :]
        all_centres = mirrored.view(-1, bank.block_size)
        self.count = len(all_centres)
        threshold, self.lists = None, []
        for some in all_centres.split(max(1, _SCORES_AT_ONCE // 2 // bank.entries)):
            scores = bank.scores(some)
            if threshold is None:  # the same for all cells: a list covers a ball of one size around its centre
                sample = bank.scores(all_centres[:: max(1, self.count // 64)]).flatten()
                left_out = sample.numel() - sample.numel() * _list_length(bank) // bank.entries
                threshold = sample.kthvalue(left_out).values
            rows, columns = _above(scores, torch.minimum(threshold, scores.amax(1)).numpy())
            self.lists += columns.int().split(torch.bincount(rows, minlength=len(some)).tolist())

    def _folded(self, units_NC: Tensor) -> Tensor:
        """The direction, up to its sign, with the first weights' signs taken off."""
        folded = units_NC * torch.where(units_NC[:, -1:] < 0, -1.0, 1.0)
        folded[:, : self._mirrored].abs_()
        return folded

    def nearest(self, blocks_NC: Tensor) -> Tensor:
        """The cell of every block, whatever its length; int64 [N]."""
        found = []
        powers = 1 << torch.arange(self._mirrored)
        for blocks in blocks_NC.split(1 << 14):
            centre = _argmax(self._folded(blocks) @ self._centres_BC.T)
            negative = (blocks[:, : self._mirrored] < 0) ^ (blocks[:, -1:] < 0)
            found.append((negative * powers).sum(1) * len(self._centres_BC) + centre)
        return torch.cat(found)


@lru_cache(maxsize=2)
def _cells(block_size: int, latent_dim: int, seed_bits: int, words: bool) -> _Cells:
    return _Cells(_bank(block_size, latent_dim, seed_bits, words))


# --------------------------------------------------------------------------------------------------------- the search


def _above(scores_NE: Tensor, floor_N: np.ndarray) -> tuple[Tensor, Tensor]:
    """Rows and columns of the scores that reach the row's floor, in row-major order; numpy's way is the quicker."""
    places = torch.from_numpy(np.flatnonzero(scores_NE.numpy() >= floor_N[:, None]))
    rows = places // scores_NE.shape[1]
    return rows, places - rows * scores_NE.shape[1]


def _argmax(scores_NS: Tensor) -> Tensor:
    """Column of every row's maximum, the first in a tie; numpy's is many times faster here than torch's."""
    return torch.from_numpy(scores_NS.numpy().argmax(1))


def _leaders(scores_NE: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, in row-major order, of each row's `count` largest scores and of a few more."""
    groups = 4 * count
    whole = scores_NE.shape[1] // groups
    if whole < 2:
        columns = scores_NE.topk(min(count, scores_NE.shape[1]), dim=1).indices.sort(dim=1).values
        return torch.arange(len(columns)).repeat_interleave(columns.shape[1]), columns.flatten()
    # The count-th largest of the groups' maxima is at most the count-th largest score, and found much sooner.
    maxima = scores_NE[:, : whole * groups].view(len(scores_NE), whole, groups).amax(1).numpy()
    floor = np.partition(maxima, groups - count, axis=1)[:, groups - count]
    rows, columns = _above(scores_NE, floor)
    if len(rows) > 2 * count * len(scores_NE):  # only where nearly all scores tie
        first = torch.searchsorted(rows, torch.arange(len(scores_NE)))
        kept = torch.arange(len(rows)) - first[rows] < groups
        rows, columns = rows[kept], columns[kept]
    return rows, columns


def _least(errors_M: Tensor, rows_M: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Each row's least error, float32 [N], and the place of its first occurrence, int64 [N]; `rows_M` ascends."""
    starts = np.searchsorted(rows_M.numpy(), np.arange(count))
    least = torch.from_numpy(np.minimum.reduceat(errors_M.numpy(), starts))
    places = torch.where(errors_M == least[rows_M], torch.arange(len(rows_M)), len(rows_M))
    return least, torch.from_numpy(np.minimum.reduceat(places.numpy(), starts))


class _Search:
    """The blocks of one call and what is found for them."""

    def __init__(self, blocks_NC: Tensor, roots_NC: Tensor | None, config: SeedLMConfig) -> None:
        self._config, self._blocks, self._roots = config, blocks_NC, roots_NC
        words = config.bits == 1 and config.block_size <= _NARROW and config.latent_dim <= _WORD_SIGNS
        self._key = config.block_size, config.latent_dim, config.seed_bits, words
        self._bank = _bank(*self._key)
        usual = _FEW_CANDIDATES if words else _CANDIDATES.get(config.bits, _FEW_CANDIDATES)
        self._candidates = config.candidates or usual * (1 if roots_NC is None else _WEIGHTED_FACTOR)
        self.seeds = torch.empty(len(blocks_NC), dtype=torch.int64)
        self.exponents = torch.empty(len(blocks_NC))
        self.codes = torch.empty(len(blocks_NC), config.latent_dim)

    def run(self, on_blocks: Progress) -> None:
        bank, exhaustive = self._bank, self._config.search is SeedSearch.exhaustive
        lists_pay = bank.narrow and bank.latent_dim < bank.block_size and bank.entries >= 4 * _list_length(bank)
        if exhaustive or not lists_pay or len(self._blocks) < 2 * _CELLS:
            # Wide blocks build all bases once per batch, so there the batches are larger.
            scores = _SCORES_AT_ONCE // 4 if bank.narrow else 8 * _SCORES_AT_ONCE
            if exhaustive and self._roots is not None:  # nearly all pairs are compared
                scores = _SCORES_AT_ONCE // 8
            for rows in torch.arange(len(self._blocks)).split(max(1, scores // bank.entries)):
                self._settle(rows, *self._all(rows, exhaustive))
                on_blocks(len(rows))
            return
        cells = _cells(*self._key)
        cell = cells.nearest(self._blocks)
        order = torch.argsort(cell, stable=True)
        ends = torch.bincount(cell, minlength=cells.count).cumsum(0).tolist()

        def work(first: int) -> int:
            begin = start = ends[first - 1] if first else 0
            lists = cells.lists[first : first + _CELLS_AT_ONCE]
            units = _units(self._blocks[order[begin : ends[first + len(lists) - 1]]])
            buffer = torch.empty(max(map(len, lists)), bank.scored_EF.shape[1])
            pairs = []
            for listed, end in zip(lists, ends[first : first + _CELLS_AT_ONCE], strict=True):
                if start == end:
                    continue
                scored = torch.index_select(bank.scored_EF, 0, listed, out=buffer[: len(listed)])
                for some in units[start - begin : end - begin].split(_BLOCKS_AT_ONCE):
                    rows, columns = _leaders(bank.scores(some, scored), self._candidates)
                    pairs.append((rows + (start - begin), listed[columns].long()))
                    start += len(some)
            if pairs:
                rows, entries = (torch.cat(parts) for parts in zip(*pairs, strict=True))
                self._settle(order[begin:start], rows, entries)
            return start - begin

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # threads work on cells of their own: the operations are too small to divide
        try:
            with ThreadPoolExecutor(threads) as pool:
                for count in pool.map(work, range(0, cells.count, _CELLS_AT_ONCE)):
                    on_blocks(count)
        finally:
            torch.set_num_threads(threads)

    def _all(self, rows: Tensor, exhaustive: bool) -> tuple[Tensor, Tensor]:
        """The pairs to compare for the blocks `rows`, after scoring all entries."""
        blocks = self._blocks[rows]
        scores = self._bank.scores(_units(blocks))
        pair_rows, entries = _leaders(scores, self._candidates)
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
        return self._bank.fit(self._blocks[rows], pair_rows, entries, self._config, roots)

    def _settle(self, rows: Tensor, pair_rows: Tensor, entries: Tensor) -> None:
        """Compares the pairs of the blocks `rows` exactly and keeps each block's best."""
        errors, exponents, codes = self._fit(rows, pair_rows, entries)
        _, best = _least(errors, pair_rows, len(rows))
        self.seeds[rows], self.codes[rows] = self._bank.seeds_and_codes(entries[best], codes[:, best])
        self.exponents[rows] = exponents[best]


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
