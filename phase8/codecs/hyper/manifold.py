"""The manifold trajectory: a seeded random network maps a few coefficients to a block of weights.

After MCNC (arXiv 2410.08353): weights as points of a low-dimensional manifold, the image of a fixed random network with
sine activations; k inputs and one amplitude are stored per block, the network is its seed. Here

    x_i = q_i frequency / (16 top)                              the inputs, in turns; q_i = -top .. top
    z_1 = sine(x W_1 + p_1),   z_l = sine(z_(l-1) W_l / sqrt(h) + p_l)   l = 2 .. depth, h = width
    block = scale q_k sine(z_depth V / sqrt(h) + p)

with entries of W and V uniform in [-1, 1) and phases p uniform in [-1/2, 1/2), all from a 64-bit mixing function of
their number (splitmix64: Steele, Lea and Flood 2014), so that nothing of the network is stored. `sine` counts in turns
and is a polynomial with float32 products and sums alone: the same bits on every machine, 4e-6 from the true sine.

The sine at the output matters: without it all blocks lie in the h dimensions that V spans, and h is below the length of
a block (Gaussian weights, 1/8 bit: relative squared error 0.92 without, 0.90 with it).

Example: depth 1, h = 1, W = 1/4, V = 1/2, phases 0, and an input of 1/2 turn: z = sine(1/8) = 0.707 and every weight is
scale q_1 sine(0.354) = 0.796 scale q_1.

Shape legend: B blocks, K inputs, H width, N weights of a block.
"""

from __future__ import annotations

import math

import numpy as np

from phase8.codecs.splitmix import integers

SINE = tuple(np.float32(c) for c in (6.2831853, -41.341702, 81.605249, -76.705859, 42.058693))
"""Taylor coefficients of sin(2 pi v): (2 pi)^n / n! for n = 1, 3, 5, 7, 9, with their signs."""


def numbers(seed: int, begin: int, count: int) -> np.ndarray:
    """Pseudo-random numbers `begin` .. of a seed, float32 [count], multiples of 2^-23 in [-1, 1)."""
    z = integers(seed, begin, count)
    return (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


def sine(turns: np.ndarray) -> np.ndarray:
    """sin(2 pi turns), float32, element by element."""
    r = turns - np.rint(turns)
    v = np.abs(r)
    v = np.minimum(v, np.float32(0.5) - v)
    y = v * v
    p = v * (SINE[0] + y * (SINE[1] + y * (SINE[2] + y * (SINE[3] + y * SINE[4]))))
    return np.where(r < 0, -p, p)


def places(inputs: int, width: int, depth: int) -> list[int]:
    """Number of the first entry of each layer's table, the output's last; rows first, then the phases."""
    firsts = [0]
    for layer in range(depth):
        firsts.append(firsts[-1] + ((inputs if layer == 0 else width) + 1) * width)
    return firsts


def turns_of(codes: np.ndarray, frequency: int, top: int) -> np.ndarray:
    """Inputs in turns: integers -> float32; the quotient of exact integers in float64, then rounded."""
    return (codes.astype(np.float64) * frequency / (16 * top)).astype(np.float32)


def activations(x_BK: np.ndarray, seed: int, width: int, depth: int) -> np.ndarray:
    """The last hidden layer, float32 [B, H]; sums run over rows in their order, each starting at +0."""
    z = x_BK
    firsts = places(x_BK.shape[1], width, depth)
    for layer in range(depth):
        first, rows = firsts[layer], z.shape[1]
        total = np.zeros((len(z), width), dtype=np.float32)
        for i in range(rows):
            total += z[:, i, None] * numbers(seed, first + i * width, width)
        if layer:
            total *= np.float32(1 / math.sqrt(width))
        phase = numbers(seed, first + rows * width, width) * np.float32(0.5)
        z = sine(total + phase)
    return z


def directions(z_BH: np.ndarray, seed: int, first: int, length: int, used: int) -> np.ndarray:
    """The first `used` of `length` weights of every block, before amplitude and scale, float32 [B, used]."""
    total = np.zeros((len(z_BH), used), dtype=np.float32)
    for j in range(z_BH.shape[1]):
        total += z_BH[:, j, None] * numbers(seed, first + j * length, used)
    total *= np.float32(1 / math.sqrt(z_BH.shape[1]))
    phase = numbers(seed, first + z_BH.shape[1] * length, used) * np.float32(0.5)
    return sine(total + phase)
