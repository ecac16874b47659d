"""Cells of directions, and for each the bases that come close to it; `seed_search.py` has the story."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from phase8.codecs.seedlm.bank import Bank, bank_of
from phase8.codecs.seedlm.threads import Scratch, in_threads
from phase8.lossless.bitpack import narrowest

_SHORT = 8  # widest block with more cells and shorter lists: the wider the blocks, the less more cells help
_CELLS_SHORT, _CELLS_LONG = 8192, 4096
_LIST_SHORT, _LIST_LONG, _LIST_WORDS = 28, 48, 24  # length of a cell's list / C^2
LIST_STEP = 16  # list lengths are multiples of it, so that lists divide into groups of equal size
_MIRRORED = 3  # weights whose signs are part of the cell's number
_LLOYD_STEPS = 12
_CACHED_SCORES = 1 << 20  # of 4 bytes: a processor core's share of the last cache


def list_length(bank: Bank) -> int:
    """Length of a cell's list: the wider the blocks, the farther a cell's blocks are from its centre."""
    usual = _LIST_SHORT if bank.block_size <= _SHORT else _LIST_LONG
    length = (_LIST_WORDS if bank.words else usual) * bank.block_size**2
    return -(-length // LIST_STEP) * LIST_STEP


def directions(x_NC: Tensor) -> Tensor:
    """The directions; a vector of zeros gets some direction, so that its scores do not all tie."""
    norm = x_NC.square().sum(1, keepdim=True).sqrt()
    return torch.where(norm > 0, x_NC / norm, x_NC.shape[1] ** -0.5)


class Cells:
    """Directions on the sphere, and for each the entries whose bases come close to it."""

    def __init__(self, bank: Bank) -> None:
        self._mirrored = min(_MIRRORED, bank.block_size - 1)
        scratch = Scratch()
        self.count = _CELLS_SHORT if bank.block_size <= _SHORT else _CELLS_LONG
        generator, count = torch.Generator().manual_seed(8), self.count >> self._mirrored
        samples = self._folded(directions(torch.randn(64 * count, bank.block_size, generator=generator)))
        centres = samples[:count]
        for _ in range(_LLOYD_STEPS):
            sums = torch.zeros_like(centres).index_add_(0, _nearest(samples, centres, scratch), samples)
            centres = directions(torch.where(sums.any(1, keepdim=True), sums, centres))
        self._centres_BC = centres
        # Cell number: the signs of the first weights, then the centre.
        signs = 1.0 - 2.0 * (torch.arange(1 << self._mirrored)[:, None] >> torch.arange(self._mirrored) & 1)
        mirrored = self._centres_BC.repeat(len(signs), 1, 1).view(len(signs), -1, bank.block_size)
        mirrored[:, :, : self._mirrored] *= signs[:, None, :]
        all_centres = mirrored.view(-1, bank.block_size)
        length = list_length(bank)
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

        for _ in in_threads(fill, range(0, self.count, at_once)):
            pass

    def _folded(self, units_NC: Tensor) -> Tensor:
        """The direction, up to its sign, with the first weights' signs taken off."""
        folded = units_NC * torch.where(units_NC[:, -1:] < 0, -1.0, 1.0)
        folded[:, : self._mirrored].abs_()
        return folded

    def nearest(self, blocks_NC: Tensor, scratch: Scratch) -> Tensor:
        """The cell of every block, whatever its length; int64 [N]."""
        powers = 1 << torch.arange(self._mirrored)
        negative = (blocks_NC[:, : self._mirrored] < 0) ^ (blocks_NC[:, -1:] < 0)
        centre = _nearest(self._folded(blocks_NC), self._centres_BC, scratch)
        return (negative * powers).sum(1) * len(self._centres_BC) + centre


def _largest(x: np.ndarray, count: int) -> np.float32:
    """The value that just `count` of the numbers reach, more in a tie."""
    return np.partition(x, len(x) - count)[len(x) - count]


def _nearest(folded_NC: Tensor, centres_BC: Tensor, scratch: Scratch) -> Tensor:
    """The centre with the largest inner product, the first in a tie; int64 [N]."""
    found = torch.empty(len(folded_NC), dtype=torch.int64)
    size = _CACHED_SCORES // len(centres_BC)
    for some, places in zip(folded_NC.split(size), found.split(size), strict=True):
        scores = torch.mm(some, centres_BC.T, out=scratch.take("scores", len(some), len(centres_BC)))
        scores.numpy().argmax(1, out=places.numpy())  # many times faster here than torch's
    return found


@lru_cache(maxsize=2)
def cells_of(block_size: int, latent_dim: int, seed_bits: int, words: bool) -> Cells:
    return Cells(bank_of(block_size, latent_dim, seed_bits, words))
