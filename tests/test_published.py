"""The constants that the papers print, as exact tests: the register's sequence, number grids, rates.

The taps, and the printed example of a basis, are in test_lfsr.py.

Rates follow from the layout alone, so that the published settings need not be encoded here: a layer of Llama-2-7B's
width is 16 million weights. That encoders fill exactly this layout is tested with the codecs.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from phase8.codecs import decoders
from phase8.codecs.hyper import ergodic
from phase8.codecs.seedlm import lfsr
from phase8.codecs.seedlm.decode import code_values
from phase8.config import SeedLMConfig, Winding

LLAMA = (4096, 4096)


def rate(codec: str, settings: dict, roles: tuple[str, ...] | None = None, shape: tuple[int, int] = LLAMA) -> Fraction:
    """Bits per weight of one matrix, all streams or those named."""
    layout = decoders.layout(codec, settings, {"w": shape})
    streams = {**layout.shared, **layout.tensors["w"]}
    return Fraction(sum(n * b for role, (n, b) in streams.items() if roles is None or role in roles), math.prod(shape))


def test_lfsr_sequence_of_16_bits() -> None:
    """Taps 0, 1, 3, 12 (SeedLM's for K = 16), worked by hand from seed 1: the 1 enters on the left and wanders."""
    wanted = [0x8000, 0x4000, 0x2000, 0x1000, 0x8800, 0x4400, 0x2200, 0x1100, 0x8880, 0x4440, 0x2220, 0x1110]
    numbers = lfsr.bases(np.array([1]), 4, 3, 16)[0]
    assert np.array_equal(np.rint(numbers.astype(np.float64) * 32767 + 32768).astype(int).reshape(-1), wanted)
    assert lfsr.cycle(16)[1:13].tolist() == wanted


@pytest.mark.parametrize(("block_size", "latent_dim", "bits"), [(8, 3, 4), (12, 4, 3)])
def test_seedlm_rates(block_size: int, latent_dim: int, bits: int) -> None:
    """M = (K + 4 + 4 P) / C: exactly 4 and 3 bits. Ours adds one scale of 16 bits a matrix."""
    settings = {"block_size": block_size, "latent_dim": latent_dim, "bits": 4, "seed_bits": 16, "exponent_bits": 4}
    shape = (block_size * 32, 4096)
    assert rate("seedlm", settings, ("seeds", "exponents", "codes"), shape) == bits
    assert rate("seedlm", settings, ("scale",), shape) == Fraction(16, math.prod(shape))


def test_seedlm_number_grid() -> None:
    """Coefficients are 4-bit two's-complement numbers times 2^e with e from -8 to 7."""
    assert code_values(np.arange(16), 4).tolist() == list(range(-8, 8))
    assert SeedLMConfig() == SeedLMConfig(block_size=8, latent_dim=3, bits=4, seed_bits=16, exponent_bits=4)


def vptq(dim: int, *sizes: int) -> dict:
    return {"vector_dim": dim, "codebook_bits": 16, "codebook_sizes": list(sizes)}


@pytest.mark.parametrize(
    ("settings", "index", "books"),
    [
        (vptq(6, 4096), Fraction(12, 6), 16 * 6 * 4096),  # 2.02 bits in the paper's table for Llama-2-7B
        (vptq(8, 65536), Fraction(16, 8), 16 * 8 * 65536),
        (vptq(8, 65536, 256), Fraction(16 + 8, 8), 16 * 8 * (65536 + 256)),
        (vptq(16, 65536, 65536), Fraction(16 + 16, 16), 2 * 16 * 16 * 65536),
    ],
)
def test_vptq_rates(settings: dict, index: Fraction, books: int) -> None:
    """(log2 k1 + log2 k2) / v bits of indices and 16 (v k1 + v k2) bits of codebooks."""
    shape = (4096 * 3, 4096)  # rows that every v divides
    indices = tuple(f"index_{m}" for m in range(len(settings["codebook_sizes"])))
    codebooks = tuple(f"codebook_{m}" for m in range(len(settings["codebook_sizes"])))
    assert rate("vptq", settings, indices, shape) == index
    assert rate("vptq", settings, codebooks, shape) == Fraction(books, math.prod(shape))


def test_vptq_2_02_bits() -> None:
    """One codebook a matrix of 4096 x 4096, as the paper counts: 2.02; and 6 bits more on 256 x 256."""
    assert round(float(rate("vptq", vptq(6, 4096), ("index_0", "codebook_0"), (4098, 4096))), 2) == 2.02
    assert rate("vptq", vptq(6, 4096), ("codebook_0",), (256, 256)) == 6


def test_hyper_rate_and_direction() -> None:
    """K = 2, U = 1600, M = 3: 4 * 1601 codes are 13 bits for two weights; a = (l / sqrt(U), l) / sqrt(U)."""
    settings = {"trajectory": "ergodic", "dims": 2, "grid": 1600, "classes": 3, "winding": "power", "exponent": 0}
    assert rate("hyper", settings, ("codes",)) == Fraction(13, 2)
    steps = ergodic.steps(2, 1600, Winding.power) / 2**64
    assert steps == pytest.approx([1 / 1600, 1 / 40], abs=1e-18)
