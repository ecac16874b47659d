"""Pseudo-random integers of a seed, the same on every machine, each worked out from its number alone.

Number n of seed S is the output of SplitMix64 (Steele, Lea and Flood 2014) at state n + S 2^32, all modulo 2^64:

    z = (n + S 2^32 + 1) 0x9E3779B97F4A7C15
    z = (z ^ z >> 30) 0xBF58476D1CE4E5B9
    z = (z ^ z >> 27) 0x94D049BB133111EB
    z ^ z >> 31

Example: number 0 of seed 0 is 0xE220A8397B1DCDAF.
"""

from __future__ import annotations

import numpy as np


def integers(seed: int, begin: int, count: int) -> np.ndarray:
    """Numbers `begin` .. of a seed, uint64 [count]."""
    start = np.uint64((begin + (seed << 32) + 1) & ((1 << 64) - 1))
    z = (np.arange(count, dtype=np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
