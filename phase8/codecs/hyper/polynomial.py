"""The polynomial trajectory: a block of N consecutive weights is a polynomial in the position.

Position j = 0 .. N-1 is x_j = (2j - (N-1)) / (N-1) in [-1, 1]. The basis is the discrete Legendre (Gram) family, which
is orthonormal over exactly these points: mean_j P_a(x_j) P_b(x_j) = [a = b]. So least squares is a projection, and
rounding a coefficient adds its own error and nothing more, which neither powers of x nor Chebyshev polynomials on
equally spaced points offer. The three-term recurrence is

    b_{k+1} P_{k+1} = x P_k - b_k P_{k-1},    b_k^2 = k^2 (N^2 - k^2) / ((4k^2 - 1) (N-1)^2),   P_0 = 1

(the Gram polynomials of classical approximation theory). It loses its digits where the degree is much above sqrt(N);
up to 4 sqrt(N) the rows are orthonormal to 1e-4, and `max_degree` stops there.

Example, N = 3: P_0 = [1, 1, 1], P_1 = sqrt(3/2) [-1, 0, 1], so the weights [1, 2, 3] have coefficients 2 and 0.8165.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

GRID = 2.0**-15
"""Basis values are rounded to multiples of this, so that a last-bit difference between machines cannot show."""


def max_degree(length: int) -> int:
    """Returns the highest usable degree over `length` positions."""
    return min(length - 1, 4 * math.isqrt(length))


def rows(degree: int, length: int, begin: int = 0, end: int | None = None) -> Iterator[np.ndarray]:
    """Yields P_0 .. P_degree over `length` equally spaced positions, float32; degree <= max_degree(length).

    Args:
        degree: the last row's.
        length: N, positions that the family is orthonormal over.
        begin, end: only these of them are worked out; by default all.
    """
    end = length if end is None else end
    if length == 1:
        yield np.ones(end - begin, dtype=np.float32)
        return
    x = (2.0 * np.arange(begin, end, dtype=np.float64) - (length - 1)) / (length - 1)
    before, now, b = np.zeros(end - begin), np.ones(end - begin), 0.0
    for k in range(degree + 1):
        yield (np.rint(now / GRID) * GRID).astype(np.float32)
        if k == degree:
            return
        n = k + 1
        b_next = math.sqrt(n * n * (length * length - n * n) / (4 * n * n - 1)) / (length - 1)
        before, now, b = now, (x * now - b * before) / b_next, b_next
