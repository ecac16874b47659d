"""A matrix as VPTQ's loop wants it: scale, order of the columns, factor of the Hessian; `encode.py` has the story."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from phase8.codecs.base import (
    Importance,
)
from phase8.codecs.matrices import AT_ONCE, Matrix, extremes, in_parts, size_of
from phase8.codecs.vptq.settings import VPTQConfig
from phase8.errors import CodecError

SUMMED_AT_ONCE = 1 << 17
"""Weights that are squared in float64 at a time."""
TRANSPOSED_AT_ONCE = 16
"""Columns that are transposed at a time: a cache line of every row."""
SMALLEST_FLOAT16 = 2.0**-24


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """One matrix, and what the loop wants to know of it."""

    source: Matrix
    shape: tuple[int, int]
    vector_dim: int
    scale: float
    order_I: Tensor
    outliers: int
    """How many of the columns, the first in that order, are outliers."""
    diagonal_I: Tensor
    """The damped Hessian's diagonal."""
    factor_II: Tensor | None
    """Upper Cholesky factor of the inverse Hessian; None where columns are coded independently."""
    row_GV: Tensor | None
    """Weights of the rows, 0 for padding; None where they are all 1."""

    @property
    def padded(self) -> int:
        """P."""
        return -(-self.shape[0] // self.vector_dim) * self.vector_dim

    @property
    def ordinary(self) -> int:
        """Number of columns that are no outliers."""
        return self.shape[1] - self.outliers

    def strips(self) -> Iterator[slice]:
        """Its rows in runs of whole vectors, up to P: as many as are worked on at a time."""
        step = max(1, AT_ONCE // (self.shape[1] * self.vector_dim)) * self.vector_dim
        return (slice(begin, min(begin + step, self.padded)) for begin in range(0, self.padded, step))

    def rows(self, strip: slice) -> Tensor:
        """A strip as it is, without the rows that pad it; float32 [rows, I]."""
        columns = self.shape[1]
        return self.source.part(strip.start * columns, min(strip.stop, self.shape[0]) * columns).view(-1, columns)

    def columns(self, strip: slice) -> Tensor:
        """A strip as the loop wants it: transposed, divided by the scale, columns by falling Hessian diagonal; padding
        is 0. Float32 [I, rows], contiguous."""
        rows_RI = self.rows(strip)
        found = torch.zeros(self.shape[1], strip.stop - strip.start)
        for start in range(0, self.shape[1], TRANSPOSED_AT_ONCE):  # in runs, so that nothing else has the strip's size
            part = slice(start, start + TRANSPOSED_AT_ONCE)
            torch.div(rows_RI.T[self.order_I[part]], self.scale or 1.0, out=found[part, : len(rows_RI)])
        return found

    def vectors(self, places_N: Tensor, first: int, length: int) -> Tensor:
        """Some vectors of `length` elements: those of the column `first` in the loop's order come first, from top to
        bottom, then those of the next. Float32 [N, length]."""
        found = torch.zeros(len(places_N), length)
        per_column = self.padded // length
        column_N, row_N = self.order_I[first + places_N // per_column], places_N % per_column * length
        for strip in self.strips():
            here = torch.nonzero((row_N >= strip.start) & (row_N < strip.stop))[:, 0]
            rows_RI, column = self.rows(strip), column_N[here]
            for element in range(length):
                row = row_N[here] - strip.start + element
                real = row < len(rows_RI)
                found[here[real], element] = rows_RI[row[real], column[real]] / (self.scale or 1.0)
        return found

    def row_weights(self, strip: slice, length: int) -> Tensor | None:
        """The rows' weights in a strip for vectors of a length that divides v, [G, length]."""
        if self.row_GV is None:
            return None
        return self.row_GV.view(-1)[strip].view(-1, length)

    def row_mass(self, length: int, product: int) -> Tensor:
        """The rows' factor in the k-means weights, [G, Q] of one column's vectors of that length."""
        rows_GV = self.row_weights(slice(0, self.padded), length)
        if rows_GV is None:
            return torch.ones(self.padded // length, product)
        return rows_GV.reshape(len(rows_GV), product, -1).mean(dim=2)


def prepare(name: str, source: Matrix, importance: Importance, config: VPTQConfig) -> Prepared:
    if len(source.shape) != 2 or size_of(source) == 0:
        raise CodecError(f"a matrix is needed, the shape is {tuple(source.shape)}", where=name, fix="protect it")
    extremes(name, source)
    rows, columns = source.shape
    row_O = torch.ones(rows) if importance.row_O is None else importance.row_O.detach().cpu().float()
    if row_O.shape != (rows,) or not torch.isfinite(row_O).all() or (row_O < 0).any() or row_O.sum() == 0:
        raise CodecError(
            f"the row weights must be {rows} finite numbers, none negative, not all 0", where=name, fix="calibrate anew"
        )
    order_I, diagonal_I, factor_II = _second_order(name, source, importance.hessian_II, config)
    row_GV = F.pad(row_O, (0, -rows % config.vector_dim)).reshape(-1, config.vector_dim)
    return Prepared(
        source=source,
        shape=(rows, columns),
        vector_dim=config.vector_dim,
        scale=_scale(name, source),
        order_I=order_I,
        outliers=columns * config.outlier_share // 1000,
        diagonal_I=diagonal_I,
        factor_II=factor_II,
        row_GV=None if bool((row_GV == 1).all()) else row_GV,
    )


def _scale(name: str, source: Matrix) -> float:
    """The root-mean-square, rounded to float16; 0 for a matrix of zeros, which so decodes to zeros."""
    runs = (run for part in in_parts(source) for run in part.split(SUMMED_AT_ONCE))
    exact = (sum(float(run.double().square().sum()) for run in runs) / size_of(source)) ** 0.5
    scale = float(torch.tensor(exact).half())
    if scale == float("inf"):
        raise CodecError(f"the weights' root-mean-square {exact:.3g} exceeds float16", where=name, fix="protect it")
    return max(scale, SMALLEST_FLOAT16) if exact > 0 else 0.0


def _second_order(
    name: str, source: Matrix, hessian_II: Tensor | None, config: VPTQConfig
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the order of the columns, the damped diagonal in that order, and the factor U or None."""
    columns = source.shape[1]
    if hessian_II is None:
        # The outliers are then the columns of the largest weights; without outliers the order has no influence.
        energy_I = torch.ones(columns)
        if config.outlier_columns:
            whole_rows = in_parts(source, max(1, AT_ONCE // columns) * columns)
            energy_I = torch.stack([part.view(-1, columns).square().sum(0) for part in whole_rows]).sum(0)
        return energy_I.argsort(descending=True, stable=True), torch.ones(columns), None
    if hessian_II.shape != (columns, columns) or not torch.isfinite(hessian_II).all():
        raise CodecError(
            f"the Hessian must be {columns} x {columns} finite numbers, it is {tuple(hessian_II.shape)}",
            where=name,
            fix="calibrate anew",
        )
    h_II = hessian_II.detach().cpu().double()
    h_II = (h_II + h_II.T) / 2
    mean = h_II.diagonal().mean()
    # A layer whose inputs were all 0 says nothing about its weights: what remains is the damping, the same for all.
    h_II = h_II / mean if mean > 0 else torch.zeros_like(h_II)
    h_II.diagonal().add_(config.hessian_damping)
    order_I = torch.argsort(h_II.diagonal(), descending=True, stable=True)
    diagonal_I = h_II.diagonal()[order_I].float()
    if (diagonal_I <= 0).any():
        raise CodecError("the Hessian has a negative diagonal", where=name, fix="calibrate anew")
    if not config.second_order:
        return order_I, diagonal_I, None
    # H = R R^T with R upper triangular (Cholesky of the reversed matrix) gives U = R^-1 without inverting H.
    lower_II, failed = torch.linalg.cholesky_ex(h_II[order_I][:, order_I].flip(0, 1))
    if int(failed):
        raise CodecError(
            "the Hessian is not positive definite", where=name, fix="raise vptq.hessian_damping, or calibrate anew"
        )
    identity_II = torch.eye(columns, dtype=torch.float64)
    factor_II = torch.linalg.solve_triangular(lower_II.flip(0, 1), identity_II, upper=True)
    return order_I, diagonal_I, factor_II.float()
