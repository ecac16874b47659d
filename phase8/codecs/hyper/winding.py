"""Points of the ergodic winding, in exact arithmetic: what the decoder needs of `phase8.codecs.hyper.ergodic`.

Positions are multiples of 2^-24 of the side: a is held in 64-bit fixed point, so i a mod 1 is the wrapped product of
two integers, and every machine gets the same bits.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal, localcontext
from functools import lru_cache

import numpy as np

from phase8.codecs.hyper.settings import Winding

_PI = Decimal("3.14159265358979323846264338327950288419716939937511")


def _primes(count: int) -> list[int]:
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % p for p in found if p * p <= candidate):
            found.append(candidate)
        candidate += 1
    return found


@lru_cache(maxsize=8)
def steps(dims: int, grid: int, winding: Winding) -> np.ndarray:
    """Returns the direction a in units of the side, uint64 [K], in 2^-64: exact decimal arithmetic on every machine.

    Rounded upwards, so that a multiple that is a whole number of turns lands on 0 and not just below 1. Read-only.
    """
    if winding is Winding.primes:
        turns = [math.isqrt(p << 128) % (1 << 64) + 1 for p in _primes(dims)]
    else:
        with localcontext() as context:
            context.prec = 50
            if winding is Winding.reciprocal:
                ratios = [1 / (_PI + k) for k in range(dims)]
            else:
                log_u = Decimal(grid).ln()
                ratios = [(-log_u * (dims - k) / dims).exp() for k in range(dims)]
            turns = [int((r * (1 << 64)).to_integral_value(rounding=ROUND_CEILING)) for r in ratios]
    direction = np.array(turns, dtype=np.uint64)
    direction.setflags(write=False)
    return direction


def offsets(index: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Positions on the winding, relative to the cube's centre and side.

    Args:
        index: i of each point, integers [n] in 0 .. U.
        direction: from `steps`, uint64 [K].

    Returns:
        ((i - 1) a mod 1) - 1/2, float32 [n, K], in [-1/2, 1/2); zero where i = 0.
    """
    turns = (index.astype(np.uint64) - np.uint64(1))[:, None] * direction[None, :]  # wraps modulo 2^64: that is "mod 1"
    unit = (turns >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return np.where(index[:, None] == 0, np.float32(0), unit - np.float32(0.5))
