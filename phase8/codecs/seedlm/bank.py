"""All bases of one setting, and what scoring and fitting them needs; `seed_search.py` has the story."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from phase8.codecs.seedlm import lfsr
from phase8.codecs.seedlm.decode import code_values
from phase8.codecs.seedlm.settings import SeedLMConfig
from phase8.codecs.seedlm.threads import Scratch

NARROW = 16  # widest block that is scored by its products of two weights
_ELEMENTS_AT_ONCE = 1 << 22
_PAIRS_AT_ONCE = 1 << 13
_RIDGE = 1e-6  # of the mean diagonal of U^T U


def limit(bits: int) -> float:
    """Largest |t| / 2^e that a code stands for with its usual rounding error."""
    return float(1 << bits) if bits <= 2 else (1 << (bits - 1)) - 0.5


def codes_of(x: Tensor, bits: int) -> Tensor:
    """Nearest codes, float, 0 .. 2^bits - 1, of coefficients divided by 2^e."""
    half = 1 << (bits - 1)
    nearest = torch.floor(x / 2) + half if bits <= 2 else torch.round(x) + half
    return nearest.clamp_(0, 2 * half - 1)


class Bank:
    """All entries of one setting (C, P, K, as words or not), and what scoring and fitting them needs."""

    def __init__(self, block_size: int, latent_dim: int, seed_bits: int, words: bool) -> None:
        self.block_size, self.words, self.narrow = block_size, words, block_size <= NARROW
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

    def features(self, blocks_CN: Tensor, scratch: Scratch) -> Tensor:
        """What is multiplied by `scored_EF`: the weights for words, else the products of two weights; [F, N]."""
        if self.words:
            return blocks_CN
        shape = self._upper.shape[1], blocks_CN.shape[1]
        one, other = scratch.take("features", *shape), scratch.take("factors", *shape)
        torch.index_select(blocks_CN, 0, self._upper[0], out=one)
        torch.index_select(blocks_CN, 0, self._upper[1], out=other)
        return one.mul_(other)

    def scores(self, units_NC: Tensor, scratch: Scratch) -> Tensor:
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
        scratch: Scratch,
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
        scratch: Scratch,
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


def _product(grams_PPM: Tensor, x_PM: Tensor, scratch: Scratch) -> Tensor:
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
def bank_of(block_size: int, latent_dim: int, seed_bits: int, words: bool) -> Bank:
    return Bank(block_size, latent_dim, seed_bits, words)
