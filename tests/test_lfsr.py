"""The shift register against a scalar loop written from the paper, and its period against number theory."""

from __future__ import annotations

import numpy as np
import pytest

from phase8.codecs.seedlm import lfsr

PUBLISHED = {
    8: (0, 2, 3, 4),
    10: (0, 3),
    12: (0, 1, 2, 8),
    14: (0, 1, 2, 12),
    15: (0, 1),
    16: (0, 1, 3, 12),
    20: (0, 3),
    24: (0, 1, 2, 7),
}


def scalar_step(state: int, width: int) -> int:
    bit = 0
    for tap in lfsr.TAPS[width]:
        bit ^= (state >> tap) & 1
    return (state >> 1) | (bit << (width - 1))


def scalar_basis(seed: int, block_size: int, latent_dim: int, width: int) -> np.ndarray:
    values, state = [], seed
    for _ in range(block_size * latent_dim):
        state = scalar_step(state, width)
        values.append((state - 2 ** (width - 1)) / (2 ** (width - 1) - 1))
    return np.array(values).reshape(block_size, latent_dim)


def power_of_x(exponent: int, width: int) -> int:
    """x**exponent modulo the taps' polynomial over GF(2), as a bit mask."""
    modulus = 1 << width
    for tap in lfsr.TAPS[width]:
        modulus |= 1 << tap

    def times(a: int, b: int) -> int:
        product = 0
        while b:
            if b & 1:
                product ^= a
            b >>= 1
            a <<= 1
            if a >> width & 1:
                a ^= modulus
        return product

    result, base = 1, 2
    while exponent:
        if exponent & 1:
            result = times(result, base)
        base = times(base, base)
        exponent >>= 1
    return result


def prime_factors(n: int) -> set[int]:
    factors, divisor = set(), 2
    while divisor * divisor <= n:
        while n % divisor == 0:
            factors.add(divisor)
            n //= divisor
        divisor += 1
    return factors | ({n} if n > 1 else set())


def test_published_taps() -> None:
    assert {width: lfsr.TAPS[width] for width in PUBLISHED} == PUBLISHED
    assert sorted(lfsr.TAPS) == list(range(2, 25))


@pytest.mark.parametrize("width", range(2, 25))
def test_taps_are_primitive(width: int) -> None:
    period = 2**width - 1
    assert power_of_x(period, width) == 1
    assert all(power_of_x(period // prime, width) != 1 for prime in prime_factors(period))


@pytest.mark.parametrize("width", range(2, 13))
def test_cycle_is_the_scalar_loop(width: int) -> None:
    states, state = [], 1
    for _ in range(2**width - 1):
        states.append(state)
        state = scalar_step(state, width)
    assert state == 1
    assert len(set(states)) == 2**width - 1
    assert np.array_equal(lfsr.cycle(width), states)


def test_printed_cross_check() -> None:
    basis = lfsr.bases(np.array([4]), 4, 2, 3)[0]
    assert np.allclose(basis * 3 + 4, [[2, 5], [6, 7], [3, 1], [4, 2]], atol=1e-6)


@pytest.mark.parametrize(
    ("width", "block_size", "latent_dim"), [(4, 8, 3), (8, 8, 3), (11, 5, 5), (16, 8, 3), (20, 12, 4)]
)
def test_bases_match_scalar(width: int, block_size: int, latent_dim: int) -> None:
    top = 2**width - 1
    seeds = np.array([1, 2, 3, top // 2, top - 1, top])
    bases = lfsr.bases(seeds, block_size, latent_dim, width)
    assert bases.dtype == np.float32
    for seed, basis in zip(seeds, bases, strict=True):
        assert np.array_equal(basis, scalar_basis(int(seed), block_size, latent_dim, width).astype(np.float32))
