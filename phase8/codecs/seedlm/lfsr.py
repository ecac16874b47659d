"""Linear-feedback shift registers: a K-bit seed stands for a matrix of pseudo-random numbers.

One step takes the exclusive or of the tapped bits, shifts the register right by one and puts that bit in at the top.
With taps from a primitive polynomial the register runs through all 2**K - 1 non-zero states before it repeats, so that
*every* seed's numbers are a window of one and the same cycle: a basis is looked up, never stepped. Example: K = 3, taps
0 and 1, runs 4 2 5 6 7 3 1 (4 ...), so seed 4 and a 4 x 2 basis give V = [[2, 5], [6, 7], [3, 1], [4, 2]].

Source: SeedLM (arXiv 2410.10714), section 3.1 and the appendix on LFSRs; the widths it does not list have taps of
well-known primitive polynomials. Shape legend: S seeds, C weights of a block, P coefficients.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

TAPS: dict[int, tuple[int, ...]] = {
    2: (0, 1),
    3: (0, 1),
    4: (0, 1),
    5: (0, 2),
    6: (0, 1),
    7: (0, 1),
    8: (0, 2, 3, 4),
    9: (0, 4),
    10: (0, 3),
    11: (0, 2),
    12: (0, 1, 2, 8),
    13: (0, 1, 3, 4),
    14: (0, 1, 2, 12),
    15: (0, 1),
    16: (0, 1, 3, 12),
    17: (0, 3),
    18: (0, 7),
    19: (0, 1, 2, 5),
    20: (0, 3),
    21: (0, 2),
    22: (0, 1),
    23: (0, 5),
    24: (0, 1, 2, 7),
}
"""Tapped bits (least significant = 0) per register width; tap t stands for x**t in x**K + sum of x**t."""


def _step(state: int, width: int) -> int:
    feedback = 0
    for tap in TAPS[width]:
        feedback ^= state >> tap
    return state >> 1 | (feedback & 1) << (width - 1)


@lru_cache(maxsize=2)
def cycle(width: int) -> np.ndarray:
    """Returns the 2**width - 1 states that follow one another from state 1, uint32, read-only.

    The register is linear over GF(2), so the states n .. 2n - 1 are one linear map of the states 0 .. n - 1: doubling
    the known prefix takes `width` vectorised exclusive ors.
    """
    length = (1 << width) - 1
    states = np.ones(1, dtype=np.uint32)
    columns = [_step(1 << bit, width) for bit in range(width)]  # the image of each single bit after states.size steps
    while states.size < length:
        image = _linear(columns, states)
        columns = [int(x) for x in _linear(columns, np.array(columns, dtype=np.uint32))]
        states = np.concatenate([states, image])
    states = states[:length].copy()
    states.setflags(write=False)
    return states


def _linear(columns: list[int], x: np.ndarray) -> np.ndarray:
    image = np.zeros_like(x)
    for bit, column in enumerate(columns):
        image ^= (x >> np.uint32(bit) & np.uint32(1)) * np.uint32(column)
    return image


@lru_cache(maxsize=2)
def wave(width: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cycle as numbers in [-1, 1] and where each seed's window begins in it.

    Returns:
        float32 [2**width - 1 + window], (state - 2**(width-1)) / (2**(width-1) - 1), the head repeated at the end;
        int64 [2**width], the start of seed s: the state *after* s. Entry 0 is meaningless: 0 is not a seed.
    """
    states = cycle(width)
    half = 1 << (width - 1)
    numbers = ((states.astype(np.float64) - half) / (half - 1)).astype(np.float32)
    start = np.zeros(1 << width, dtype=np.int64)
    start[states] = (np.arange(states.size) + 1) % states.size
    numbers = np.resize(numbers, states.size + window)
    numbers.setflags(write=False)
    start.setflags(write=False)
    return numbers, start


def bases(seeds_S: np.ndarray, block_size: int, latent_dim: int, width: int) -> np.ndarray:
    """The bases U(s), float32 [S, C, P], filled row by row from the states that follow each seed, 1 to 2**K - 1."""
    numbers, start = wave(width, block_size * latent_dim)
    windows = np.lib.stride_tricks.sliding_window_view(numbers, block_size * latent_dim)
    return windows[start[seeds_S]].reshape(-1, block_size, latent_dim)
