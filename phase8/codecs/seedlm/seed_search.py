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

import numpy as np
import torch
from torch import Tensor

from phase8.codecs.base import Progress
from phase8.codecs.seedlm.bank import NARROW, bank_of, codes_of
from phase8.codecs.seedlm.cells import LIST_STEP, Cells, cells_of, directions, list_length
from phase8.codecs.seedlm.settings import SeedLMConfig, SeedSearch
from phase8.codecs.seedlm.threads import Scratch, in_threads

_LEAST_BLOCKS = 8192  # for fewer the cells' lists do not pay
_CANDIDATES = {1: 128, 2: 64, 3: 32}  # by bits; measured: with twice as many the error falls by less than 0.1 %
_FEW_CANDIDATES, _WORD_CANDIDATES = 8, 12  # more bits; words
_WEIGHTED_FACTOR = 4  # more candidates where the scores leave out the importances
_WORD_SIGNS = 4  # most coefficients of 1 bit whose patterns of signs are scored one by one
_PIECE = 128  # most blocks of a cell that are scored at once
_PIECES_AT_ONCE, _PIECES_A_TASK = 8, 16
_SCORES_AT_ONCE = 1 << 23
_FLOAT32_SLACK = 1e-5  # of |w|^2: more than the scores' rounding error
_BFLOAT16_SLACK = 1e-2


def _above(scores_NE: Tensor, floor_N: np.ndarray) -> tuple[Tensor, Tensor]:
    """Rows and columns of the scores that reach the row's floor, in row-major order; numpy's way is the quicker."""
    places = torch.from_numpy(np.flatnonzero(scores_NE.numpy() >= floor_N[:, None]))
    rows = places // scores_NE.shape[1]
    return rows, places - rows * scores_NE.shape[1]


def _leaders(scores_NE: Tensor, count: int, scratch: Scratch) -> Tensor:
    """Columns, ascending, of about each row's `count` largest scores; int64 [N, at least min(count, E)].

    The columns are dealt out to groups, at least eight for each one wanted, and the best groups give their best column:
    the largest score always, the next ones unless they share a group with a larger one.
    """
    columns = scores_NE.shape[1]
    depth = min(LIST_STEP, columns // (8 * count))
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


class _Search:
    """The blocks of one call and what is found for them."""

    def __init__(self, blocks_NC: Tensor, roots_NC: Tensor | None, config: SeedLMConfig) -> None:
        self._config, self._blocks, self._roots = config, blocks_NC, roots_NC
        words = config.bits == 1 and config.block_size <= NARROW and config.latent_dim <= _WORD_SIGNS
        self._key = config.block_size, config.latent_dim, config.seed_bits, words
        self._bank = bank_of(*self._key)
        usual = _WORD_CANDIDATES if words else _CANDIDATES.get(config.bits, _FEW_CANDIDATES)
        self._candidates = config.candidates or usual * (1 if roots_NC is None else _WEIGHTED_FACTOR)
        self._scratch = Scratch()
        self.seeds = torch.empty(len(blocks_NC), dtype=torch.int64)
        self.exponents = torch.empty(len(blocks_NC))
        self.codes = torch.empty(len(blocks_NC), config.latent_dim)

    def run(self, on_blocks: Progress) -> None:
        bank, exhaustive = self._bank, self._config.search is SeedSearch.exhaustive
        lists_pay = bank.narrow and bank.latent_dim < bank.block_size and bank.entries >= 4 * list_length(bank)
        if exhaustive or not lists_pay or len(self._blocks) < _LEAST_BLOCKS:
            # Wide blocks build all bases once per batch, so there the batches are larger.
            scores = _SCORES_AT_ONCE // 4 if bank.narrow else 8 * _SCORES_AT_ONCE
            if exhaustive and self._roots is not None:  # nearly all pairs are compared
                scores = _SCORES_AT_ONCE // 8
            for rows in torch.arange(len(self._blocks)).split(max(1, scores // bank.entries)):
                self._settle(rows, *self._all(rows, exhaustive))
                on_blocks(len(rows))
            return
        cells = cells_of(*self._key)
        cell = torch.empty(len(self._blocks), dtype=torch.int64)

        def assign(first: int) -> None:
            some = slice(first, first + _PIECE * _PIECES_A_TASK)
            cell[some] = cells.nearest(self._blocks[some], self._scratch)

        for _ in in_threads(assign, range(0, len(cell), _PIECE * _PIECES_A_TASK)):
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

        for count in in_threads(work, range(0, len(pieces), _PIECES_A_TASK)):
            on_blocks(count)

    def _listed(self, cells: Cells, order_N: Tensor, pieces: np.ndarray) -> tuple[Tensor, Tensor]:
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
        scores = self._bank.scores(directions(blocks), self._scratch)
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
