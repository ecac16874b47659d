"""The Fourier trajectory: a block of N consecutive weights is a mean and the first sinusoids over the block.

Rows: 1, then for k = 1 .. degree: sqrt(2) cos(2 pi k j / N), sqrt(2) sin(2 pi k j / N). They are orthonormal over the N
positions: mean_j row_a row_b = [a = b]. Sines differ in the last bit between machines; every value is therefore rounded
to a multiple of 2^-15, which the difference of 2^-52 moves in about one value of 10^11, and exact values (0, 1, 1/2)
never. The phase k j mod N is reduced in integers, so long blocks lose nothing.

Example, N = 4, degree 1: rows [1,1,1,1], sqrt(2) [1,0,-1,0], sqrt(2) [0,1,0,-1]; the weights [3, 2, 1, 2] have
coefficients 2, 0.7071, 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from phase8.codecs.hyper.polynomial import GRID


def max_degree(length: int) -> int:
    """Returns the highest frequency whose sine and cosine are independent over `length` positions."""
    return (length - 1) // 2


def rows(degree: int, length: int, begin: int = 0, end: int | None = None) -> Iterator[np.ndarray]:
    """Yields the 1 + 2 degree rows over `length` positions, float32; arguments as `polynomial.rows`."""
    end = length if end is None else end
    yield np.ones(end - begin, dtype=np.float32)
    j = np.arange(begin, end, dtype=np.int64)
    for k in range(1, degree + 1):
        angle = (k * j % length) * (2.0 * math.pi / length)
        for wave in (np.cos(angle), np.sin(angle)):
            yield (np.rint(math.sqrt(2.0) * wave / GRID) * GRID).astype(np.float32)
