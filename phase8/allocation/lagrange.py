"""Which option for which tensor: the least distortion within a number of bytes.

Every tensor takes one of S options. Tensors of one *pool* (all of one kind, say) that take the same option share its
codebook: a charge on every pair of pool and option in use. For a price of a byte, lambda, the cheapest choice

    min  sum_t (D_t(s_t) + lambda B_t(s_t))  +  lambda sum_(pool, s in use) C(pool, s)

falls apart into one problem per pool: which subset of the options to open. All subsets are tried, and within one each
tensor takes its cheapest member. What minimises this has the least distortion of all choices of as many bytes
(Everett, Operations Research 11, 1963); without charges it is a point where every tensor stands at the same slope of
the lower convex hull of its options (Shoham and Gersho, 1988). Bisection finds the price; bytes that are left over go
to single tensors, by the largest drop of distortion per byte.

Example: two tensors, options of 1 and 3 bytes, distortions (8, 4) and (3, 1), 4 bytes in all: at prices between 1
and 2 the first tensor takes 3 bytes and the second 1.

Shape legend: T tensors, S options, G pools, M subsets of the options.
"""

from __future__ import annotations

import itertools

import numpy as np

_STEPS = 60
"""Bisections of the price, over the logarithm of a range of 10^24."""


def allocate(
    bytes_TS: np.ndarray, distortion_TS: np.ndarray, charge_GS: np.ndarray, pool_T: np.ndarray, budget: float
) -> np.ndarray | None:
    """Chooses an option for every tensor.

    Args:
        bytes_TS: bytes of each tensor with each option; float64, above 0.
        distortion_TS: its distortion; float64, in one unit for all tensors.
        charge_GS: bytes that the first tensor of a pool with an option costs beside its own.
        pool_T: number of each tensor's pool.
        budget: most bytes of all tensors and charges.

    Returns:
        The option of each tensor, int64 [T]; None where no choice is within the budget.
    """
    subsets_MS = _subsets(bytes_TS.shape[1])

    def at(price: float) -> np.ndarray:
        chosen = np.empty(len(bytes_TS), dtype=np.int64)
        for pool, charge_S in enumerate(charge_GS):
            members = np.flatnonzero(pool_T == pool)
            if len(members):
                cost = distortion_TS[members] + price * bytes_TS[members]
                chosen[members] = _cheapest(cost, price * charge_S, subsets_MS)
        return chosen

    def size(chosen: np.ndarray) -> float:
        return total_bytes(chosen, bytes_TS, charge_GS, pool_T)

    unit = max(float(np.ptp(distortion_TS)), 1e-300) / float(bytes_TS.max())
    best = at(0.0)
    if size(best) <= budget:
        return best
    low, high = 1e-12 * unit, 1e12 * unit
    best = at(high)
    if size(best) > budget:
        return None
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        chosen = at(middle)
        if size(chosen) <= budget:
            best, high = chosen, middle
        else:
            low = middle
    return _spend(best, bytes_TS, distortion_TS, charge_GS, pool_T, budget)


def total_bytes(chosen_T: np.ndarray, bytes_TS: np.ndarray, charge_GS: np.ndarray, pool_T: np.ndarray) -> float:
    """Bytes of a choice, charges included."""
    used = set(zip(pool_T.tolist(), chosen_T.tolist(), strict=True))
    return float(bytes_TS[np.arange(len(chosen_T)), chosen_T].sum() + sum(charge_GS[pair] for pair in used))


def _subsets(options: int) -> np.ndarray:
    """Every non-empty subset of the options, bool [M, S]."""
    return np.array([mask for mask in itertools.product((False, True), repeat=options) if any(mask)])


def _cheapest(cost_TS: np.ndarray, charge_S: np.ndarray, subsets_MS: np.ndarray) -> np.ndarray:
    """The option of each tensor of one pool that minimises costs and charges together."""
    if not charge_S.any():
        return cost_TS.argmin(1)
    total_M = subsets_MS @ charge_S
    for cost_S in cost_TS:
        total_M += np.where(subsets_MS, cost_S, np.inf).min(1)
    opened = subsets_MS[int(total_M.argmin())]
    return np.where(opened, cost_TS, np.inf).argmin(1)


def _spend(
    chosen_T: np.ndarray,
    bytes_TS: np.ndarray,
    distortion_TS: np.ndarray,
    charge_GS: np.ndarray,
    pool_T: np.ndarray,
    budget: float,
) -> np.ndarray:
    """Gives left-over bytes to one tensor after the other: the best drop per byte that fits, until none does."""
    chosen_T = chosen_T.copy()
    rows = np.arange(len(chosen_T))
    while True:
        left = budget - total_bytes(chosen_T, bytes_TS, charge_GS, pool_T)
        opened = np.zeros(charge_GS.shape, dtype=bool)
        opened[pool_T, chosen_T] = True
        more_TS = bytes_TS - bytes_TS[rows, chosen_T][:, None] + np.where(opened, 0.0, charge_GS)[pool_T]
        gain_TS = distortion_TS[rows, chosen_T][:, None] - distortion_TS
        fits = (more_TS <= left) & (gain_TS > 0)
        if not fits.any():
            return chosen_T
        # A move that saves bytes as well is worth any other; the bytes only order those that cost some.
        slope = np.where(fits, gain_TS / np.maximum(more_TS, 1e-9), -np.inf)
        tensor, option = np.unravel_index(int(slope.argmax()), slope.shape)
        chosen_T[tensor] = option
