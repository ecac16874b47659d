"""Integers times steps, entropy-coded: the closed-form methods that the trained lattice has to beat.

    round to nearest     q = round(w / s)                                one step s a matrix
    pruning              the smallest |w| to zero, the rest to 2^(b-1) - 1 levels a side
    GPTQ                 columns one after another; the error of each goes into those not yet coded (arXiv 2210.17323)
    WaterSIC-like        the same with steps of each column's own, s_j in proportion to 1 / l_jj, so that every column
                         adds alike to the output's error (arXiv 2603.04956)

GPTQ with an unbounded uniform grid and an entropy coder is what the WaterSIC paper calls Huffman-GPTQ. H = mean of
x x^T over the layer's inputs, damped, H^-1 = U^T U with U upper triangular; after column j, what is left of the row is
w_k -= (w_j - w'_j) U_jk / U_jj for k > j. U_jj is 1 / l_jj: the column's standard deviation, given those after it, is
l_jj, so what it may lose is in proportion to U_jj.

Minimal: a relative step c is shared by all matrices (s = c x standard deviation), columns go by falling H_jj, and the
WaterSIC rows have one least-squares gain a column (its LMMSE correction), which is free, since a column's step is
stored anyway. Not built: its rates per layer by search, its rescaling of rows, its mix of original and coded inputs.

Example: H = 1 / 0.5 / 1 (off-diagonal 0.5), w = 0.6, 0.0, step 1: the first becomes 1, error -0.4; the second becomes
0 + 0.4 x U_01 / U_00 = -0.2 (with H^-1 in proportion to 1 / -0.5 / 1, U_01 / U_00 is -0.5), rounded to 0.

Shapes: O output rows, I input columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from phase8.codecs.base import Importance
from phase8.lossless import entropy

STEP_BITS = 16
FINENESS = 16
"""A column's own step is 2^(k / 16), k entropy-coded: 16 bits a column would be a third of a bit a weight here."""
DAMPING = 0.02
"""Of the mean of H's diagonal."""
Lattice = tuple[dict[str, np.ndarray], dict[str, Tensor], int]
"""Integers [O, I], what they stand for [O, I], and the bits of the steps."""


def coded_bytes(integers: Mapping[str, np.ndarray]) -> int:
    """Bytes of the integers of every matrix under an entropy coder with a table for each."""
    total = 0
    for values in integers.values():
        least = int(values.min())
        shifted = (values.reshape(-1) - least).astype(np.uint32)
        bits = max(1, int(shifted.max()).bit_length())
        total += len(entropy.encode(shifted, bits)[1])
    return total


def nearest(matrices: Mapping[str, Tensor], relative: float) -> Lattice:
    """Each matrix on a grid of `relative` standard deviations."""
    integers, decoded = {}, {}
    for name, w in matrices.items():
        step = _stored(relative * w.std())
        q = torch.round(w / step)
        integers[name], decoded[name] = q.to(torch.int64).numpy(), q * step
    return integers, decoded, STEP_BITS * len(integers)


def pruned(matrices: Mapping[str, Tensor], share: float, bits: int) -> Lattice:
    """The smallest `share` of each matrix's weights to zero, the others to `bits` bits, symmetric.

    The step is the one of eight, from a third of the largest weight's up to it, that errs least.
    """
    integers, decoded = {}, {}
    most = (1 << (bits - 1)) - 1
    for name, w in matrices.items():
        threshold = w.abs().flatten().kthvalue(max(1, int(share * w.numel()))).values
        kept = torch.where(w.abs() > threshold, w, 0.0)
        tried = []
        for part in torch.linspace(1 / 3, 1, 8):
            step = _stored(part * w.abs().max() / most)
            q = torch.round(kept / step).clamp(-most, most)
            tried.append((float((q * step - w).square().sum()), q, step))
        _, q, step = min(tried, key=lambda one: one[0])
        integers[name], decoded[name] = q.to(torch.int64).numpy(), q * step
    return integers, decoded, STEP_BITS * len(integers)


def fed_back(
    matrices: Mapping[str, Tensor], importance: Mapping[str, Importance], relative: float, *, columns: bool
) -> Lattice:
    """GPTQ; with `columns`, WaterSIC-like."""
    integers, decoded, gains = {}, {}, []
    for name, w in matrices.items():
        hessian = importance[name].hessian_II if name in importance else None
        if hessian is None:
            hessian = torch.eye(w.shape[1])
        q, rebuilt, steps = _columns(w, hessian, float(relative * w.std()), columns)
        integers[name], decoded[name] = q, rebuilt
        gains.append(steps)
    if not columns:
        return integers, decoded, STEP_BITS * len(integers)
    exponents = (FINENESS * torch.cat(gains).log2()).round().to(torch.int64).numpy()
    return integers, decoded, 8 * coded_bytes({"gains": exponents})


def _columns(w_OI: Tensor, hessian_II: Tensor, step: float, own_steps: bool) -> tuple[np.ndarray, Tensor, Tensor]:
    left, h = w_OI.double().clone(), hessian_II.double()
    h = h / h.diagonal().mean() + DAMPING * torch.eye(len(h), dtype=torch.float64)
    order = torch.argsort(h.diagonal(), descending=True, stable=True)
    left, h = left[:, order], h[order][:, order]
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    own = upper.diagonal()
    even = torch.full_like(own, step)
    steps = _on_scale(even * own / own.log().mean().exp()) if own_steps else _stored(even).double()
    q_OI, rebuilt_OI = torch.zeros_like(left), torch.zeros_like(left)
    for j in range(left.shape[1]):
        w = left[:, j]
        q = torch.round(w / steps[j])
        if own_steps and q.any():
            steps[j] = _on_scale((w @ q) / (q @ q))
        q_OI[:, j], rebuilt_OI[:, j] = q, q * steps[j]
        error = (w - rebuilt_OI[:, j]) / own[j]
        left[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    back = torch.argsort(order)
    return q_OI[:, back].to(torch.int64).numpy(), rebuilt_OI[:, back].float(), steps


def _on_scale(step: Tensor) -> Tensor:
    """The nearest power of 2^(1 / FINENESS): a column's step is one small integer."""
    return torch.exp2((FINENESS * step.log2()).round() / FINENESS)


def _stored(step: Tensor) -> Tensor:
    """As float16 holds it, and above 0."""
    return step.to(torch.float16).float().clamp_min(2.0**-24)
