"""Pseudo-random integers of a seed, the same on every machine, each worked out from its number alone.

Number n of seed S is the output of SplitMix64 (Steele, Lea and Flood 2014) at state n + S 2^32, all modulo 2^64:

    z = (n + S 2^32 + 1) 0x9E3779B97F4A7C15
    z = (z ^ z >> 30) 0xBF58476D1CE4E5B9
    z = (z ^ z >> 27) 0x94D049BB133111EB
    z ^ z >> 31

`bell` makes bell-shaped numbers of it: the four 16-bit quarters added up (Irwin-Hall), less their mean, times the
float32 number nearest to 1 / sqrt(4 (2^32 - 1) / 12), so that the variance is 1. Nothing reaches beyond 3.4641; the
kurtosis is 2.7, that of the normal distribution 3. Example: number 0 of seed 0 is 0xE220A8397B1DCDAF, its quarters add
up to 185125, and the value is (185125 - 131070) 14529495 2^-39 = 1.42862.
"""

from __future__ import annotations

import numpy as np

UNIT = np.float32(14529495 * 2.0**-39)
_MEAN = 131070
_AT_ONCE = 1 << 16
"""Numbers worked out at a time; their intermediate 64-bit values stay this few."""


def integers(seed: int, begin: int, count: int) -> np.ndarray:
    """Numbers `begin` .. of a seed, uint64 [count]."""
    start = np.uint64((begin + (seed << 32) + 1) & ((1 << 64) - 1))
    z = (np.arange(count, dtype=np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def bell(seed: int, begin: int, count: int) -> np.ndarray:
    """Numbers `begin` .. of a seed with mean 0 and variance 1, float32 [count]; see the module's text."""
    values = np.empty(count, dtype=np.float32)
    for first in range(0, count, _AT_ONCE):
        z = integers(seed, begin + first, min(_AT_ONCE, count - first))
        total = sum((z >> np.uint64(shift) & np.uint64(0xFFFF)).astype(np.int32) for shift in (0, 16, 32, 48))
        values[first : first + len(z)] = (total - _MEAN).astype(np.float32) * UNIT
    return values
