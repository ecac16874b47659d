"""VPTQ: vectors of weights as sums of codebook entries, chosen under the layer's Hessian (arXiv 2409.17066).

How it works. A *vector* is v consecutive output rows of one input column, so that all its elements share one Hessian
diagonal entry H_jj (section 3.1): the k-means that fits a codebook weights each vector by H_jj, and within a column
the plain nearest entry is the best one. Each matrix is first divided by its own root-mean-square, so that matrices
of different size can share codebooks.

The second-order loop (section 3.2, channel-independent) takes the columns in falling order of H_jj. With U the upper
Cholesky factor of H^-1, coding column q as w^_q leaves the error

    e = (w_q - w^_q) / U_qq,        and every later column takes        w_j -= e U_qj,

which is the exact Optimal Brain Surgeon update under the Hessian of the columns that are left: row q of U, times U_qq,
is the first row of (H_qq..)^-1 (GPTQ, arXiv 2210.17323, section 3.3). As there, the updates of the columns beyond the
next 128 are gathered into one matrix product.

Residual codebooks: the first codebook is fitted to the weights; the loop runs; the next codebook is fitted to what the
loop left over of the compensated weights; the loop runs again from the original weights with the greedy sum of both.

    decoded[g v + i, j] = scale * (codebook_0[index_0[g, j], i] + codebook_1[index_1[g, j], i] + ...)

Example: v = 2, scale 1, codebook_0 = {(1, 1), (-1, -1)}, codebook_1 = {(0.25, 0), (0, -0.25)}: the column
(1.2, 1.1, -1, -1.3) is two vectors, with the codes (0, 0) and (1, 1), and decodes to (1.25, 1, -1, -1.25).

Deviations from the paper: one scale per matrix in place of its layer norms; rows may carry weights (token frequency
of an embedding), which multiply the k-means weights and enter the choice of an entry; codebooks are rounded to their
stored precision before the loop, so that it compensates that rounding too.

Outlier columns (section 3.3 of the paper): the share `outlier_columns` of a matrix's columns, those of the largest
Hessian diagonal, come first in the loop and have one codebook of their own, of shorter vectors.

Product codebooks (Jegou, Douze and Schmid 2011): `product` cuts a vector into Q parts of u = v / Q elements, and every
codebook above is then Q codebooks, one for each part, with an index each. A part of a vector is coded on its own, so
the loop is the same; Q multiplies the rate, and the entries that one vector can be, K^Q.

Memory: codebooks are fitted to at most `FITTED_VECTORS` vectors, spread over all, and the loop, which treats every row
on its own, takes a strip of rows at a time. So whatever a matrix's size, no more than that and the indices are held;
with several codebooks also what the ones before left over.

Shape legend: O output rows, P rows padded to a multiple of v, I input columns, G = P / v vectors of a column,
V elements of a vector, Q parts of a vector, U = V / Q elements of a part, N vectors, K entries of a codebook, T outlier
columns, M codebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phase8.codecs import decoders
from phase8.codecs.base import (
    JSON,
    EncodedGroup,
    EncodedTensor,
    Importance,
    Progress,
    Stream,
    Trainable,
    float16_bits,
    round_through,
)
from phase8.codecs.matrices import AT_ONCE, Matrix, extremes, in_parts, matrices, size_of
from phase8.codecs.vptq.decode import (
    EIGHT_BIT_OFFSET,
    codebooks,
    parts,
    settings_of,
)
from phase8.codecs.vptq.kmeans import kmeans
from phase8.codecs.vptq.settings import VPTQConfig
from phase8.errors import CodecError
from phase8.lossless.bitpack import narrowest

LOOP_BLOCK = 128
"""Columns between two lazy updates; changes the speed, not the result."""
SCORES_AT_ONCE = 1 << 18
"""Distances held in memory while entries are chosen: 1 MiB, which stays in a core's cache."""
SUMMED_AT_ONCE = 1 << 17
"""Weights that are squared in float64 at a time."""
TRANSPOSED_AT_ONCE = 16
"""Columns that are transposed at a time: a cache line of every row."""
SMALLEST_FLOAT16 = 2.0**-24
FITTED_VECTORS = 1 << 19
"""Vectors that codebooks are fitted to, where there are more: 512 for each of 1024 entries; larger codebooks get 32 for
each."""


class VPTQCodec:
    """Residual vector quantisation. One call of `encode` fits one set of codebooks, shared by all its matrices."""

    name = "vptq"

    def encode(
        self,
        weights: Mapping[str, Tensor | Matrix],
        config: VPTQConfig,
        *,
        importance: Mapping[str, Importance],
        seed: int,
        on_progress: Progress | None = None,
    ) -> EncodedGroup:
        """Encodes matrices [O, I] of any shapes; see `Codec.encode`.

        A group with fewer vectors than `codebook_size` gets as many entries as it has vectors.

        Raises:
            CodecError: weights or importance that are NaN, infinite or of the wrong shape; a Hessian that is not
                positive semi-definite.
        """
        taken = {
            name: _prepare(name, matrix, importance.get(name, Importance()), config)
            for name, matrix in matrices(weights).items()
        }
        fit = _Fit(config, list(taken.values()), seed)
        outlier_KV = None if "outlier_codebook" not in fit.books else fit.learn("outlier_codebook")[0]
        left: list[Tensor] = []
        levels: list[Tensor] = []
        tensors = {}
        for number in range(config.num_codebooks):
            levels.append(fit.learn(f"codebook_{number}", left))
            last, left = number + 1 == config.num_codebooks, []
            for name, matrix in taken.items():
                if last:
                    tensors[name] = EncodedTensor(shape=matrix.shape, streams=_coded(matrix, levels, outlier_KV))
                else:
                    left.append(_left_over(matrix, levels, outlier_KV))
                if on_progress is not None:
                    # Every pass over the columns counts as an equal part of the matrix's work.
                    size, passes = matrix.shape[0] * matrix.shape[1], config.num_codebooks
                    on_progress(size * (number + 1) // passes - size * number // passes)
        return EncodedGroup(codec=self.name, settings=fit.settings, tensors=tensors, shared=fit.streams)

    def decode(self, group: EncodedGroup) -> dict[str, np.ndarray]:
        """Returns every matrix, float32 [O, I]; see `Codec.decode`."""
        return dict(decoders.decode(group))

    def trainable(self, group: EncodedGroup) -> Trainable:
        """Returns codebooks and scales as parameters, the indices as buffers."""
        return _VPTQTrainable(group)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Matrix:
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


def _prepare(name: str, source: Matrix, importance: Importance, config: VPTQConfig) -> _Matrix:
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
    return _Matrix(
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


def _coded(matrix: _Matrix, levels: list[Tensor], outlier_KV: Tensor | None) -> dict[str, Stream]:
    """The streams of a matrix, strip by strip, the columns in the matrix's own order."""
    product, size, u = levels[0].shape
    outlier_I, other_I = matrix.order_I[: matrix.outliers], matrix.order_I[matrix.outliers :]
    streams = {"scale": Stream(values=float16_bits(np.array([matrix.scale])), bits=16)}
    index_MGI = [
        np.empty((matrix.padded // u, matrix.ordinary), dtype=narrowest(_bits(level_QKU.shape[1])))
        for level_QKU in levels
    ]
    outlier_v = 1 if outlier_KV is None else outlier_KV.shape[1]
    outlier_GI = np.empty((matrix.padded // outlier_v, matrix.outliers), dtype=np.uint16)
    other, outlier = other_I.argsort().numpy(), outlier_I.argsort().numpy()
    for strip in matrix.strips():
        index_MIG, outlier_IG, _ = _code_strip(matrix, strip, levels, outlier_KV, last=True)
        for all_GI, index_IG in zip(index_MGI, index_MIG, strict=True):
            all_GI[strip.start // u : strip.stop // u] = index_IG.T[:, other]
        outlier_GI[strip.start // outlier_v : strip.stop // outlier_v] = outlier_IG.T[:, outlier]
    for m, (all_GI, level_QKU) in enumerate(zip(index_MGI, levels, strict=True)):
        streams[f"index_{m}"] = _index_stream(all_GI, level_QKU.shape[1])
    if matrix.outliers and outlier_KV is not None:
        streams["outlier_column"] = _index_stream(outlier_I.sort().values.numpy(), matrix.shape[1])
        streams["outlier_index"] = _index_stream(outlier_GI, len(outlier_KV))
    return streams


def _left_over(matrix: _Matrix, levels: list[Tensor], outlier_KV: Tensor | None) -> Tensor:
    """What is left over of the compensated weights of the columns that are no outliers, float32 [I - T, P]."""
    left_IP = torch.empty(matrix.ordinary, matrix.padded)
    for strip in matrix.strips():
        left_IP[:, strip] = _code_strip(matrix, strip, levels, outlier_KV, last=False)[2]
    return left_IP


def _code_strip(
    matrix: _Matrix, strip: slice, levels: list[Tensor], outlier_KV: Tensor | None, *, last: bool
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Runs the loop over a strip of rows, of which none has to do with the others.

    Args:
        levels: the codebooks so far, each float32 [Q, K, U].
        outlier_KV: the outliers' codebook.
        last: nobody wants to know what is left over.

    Returns:
        In the loop's order of columns: indices, uint16 [codebooks, I - T, G Q]; the outliers', uint16 [T, G v / v'];
        what is left over of the compensated weights of the other columns, float32 [I - T, rows], or anything.
    """
    columns, special = matrix.shape[1], matrix.outliers
    product, _, u = levels[0].shape
    v, rows = product * u, strip.stop - strip.start
    chooser = _Chooser(levels, matrix.row_weights(strip, v))
    outlier_v, outlier_chooser = 1, None
    if outlier_KV is not None:
        outlier_v = outlier_KV.shape[1]
        outlier_chooser = _Chooser([outlier_KV[None]], matrix.row_weights(strip, outlier_v))
    index_MIG = np.empty((len(levels), columns - special, rows // u), dtype=np.uint16)
    outlier_IG = np.empty((special, rows // outlier_v), dtype=np.uint16)
    target_IP = matrix.columns(strip)
    if matrix.factor_II is None:
        if special and outlier_chooser is not None:
            outlier_chooser.choose(target_IP[:special].reshape(-1, outlier_v), outlier_IG.reshape(1, -1, 1))
        left_NV = target_IP[special:].view(-1, v)
        chooser.choose(left_NV, index_MIG.reshape(len(levels), -1, product), None if last else left_NV)
        return index_MIG, outlier_IG, target_IP[special:]

    # A column that is coded is not read again: what is left over of it takes its place.
    divisor_I = matrix.factor_II.diagonal().tolist()
    for start in range(0, columns, LOOP_BLOCK):
        stop = min(start + LOOP_BLOCK, columns)
        error_BP = torch.empty(stop - start, rows)
        for q in range(start, stop):
            if q < special and outlier_chooser is not None:
                x_GV = target_IP[q].view(-1, outlier_v)
                outlier_chooser.choose(x_GV, outlier_IG[q].reshape(1, -1, 1), x_GV)
            else:
                x_GV = target_IP[q].view(-1, v)
                chooser.choose(x_GV, index_MIG[:, q - special].reshape(len(levels), -1, product), x_GV)
            torch.div(target_IP[q], divisor_I[q], out=error_BP[q - start])
            target_IP[q + 1 : stop].addr_(matrix.factor_II[q, q + 1 : stop], error_BP[q - start], alpha=-1)
        target_IP[stop:].addmm_(matrix.factor_II[start:stop, stop:].T, error_BP, alpha=-1)
    return index_MIG, outlier_IG, target_IP[special:]


class _Chooser:
    """Picks the entries whose greedy sum is nearest to a vector.

    The nearest entry c to x under row weights r has the largest sum_i r_i (x_i c_i - c_i^2 / 2): one matrix product of
    (r x, r) with (c, -c^2 / 2). Where r is 1 throughout, the second half is a bias.
    """

    def __init__(self, levels: list[Tensor], row_GV: Tensor | None) -> None:
        self._levels = levels
        self._row_GV = row_GV
        self._keys = [
            [
                c_KU.T.contiguous() if row_GV is None else torch.cat([c_KU, c_KU.square() / -2], dim=1).T.contiguous()
                for c_KU in level_QKU
            ]
            for level_QKU in levels
        ]
        self._bias = [level_QKU.square().sum(dim=2) / -2 for level_QKU in levels]
        self._chunk = max(1, SCORES_AT_ONCE // max(level_QKU.shape[1] for level_QKU in levels))

    def choose(self, x_NV: Tensor, index_MNQ: np.ndarray, left_NV: Tensor | None = None) -> None:
        """Writes the index of every codebook and, where it is wanted, x - sum of the entries; the latter may be x.

        N is a multiple of G.
        """
        for start in range(0, len(x_NV), self._chunk):
            part = slice(start, start + self._chunk)
            left_CV = x_NV[part]
            row_CV = None
            if self._row_GV is not None:
                row_CV = self._row_GV[torch.arange(start, start + len(left_CV)) % len(self._row_GV)]
            for m, level_QKU in enumerate(self._levels):
                more = m + 1 < len(self._levels) or left_NV is not None
                rest = []
                for q, c_KU in enumerate(level_QKU):
                    own = slice(q * c_KU.shape[1], (q + 1) * c_KU.shape[1])
                    x_CU = left_CV[:, own]
                    if row_CV is None:
                        score = torch.addmm(self._bias[m][q], x_CU, self._keys[m][q])
                    else:
                        score = torch.cat([x_CU * row_CV[:, own], row_CV[:, own]], dim=1) @ self._keys[m][q]
                    # numpy's argmax is three times as fast as torch's on rows this short.
                    index = score.numpy().argmax(axis=1)
                    index_MNQ[m, part, q] = index
                    if more:
                        rest.append(x_CU - c_KU[torch.from_numpy(index)])
                left_CV = torch.cat(rest, dim=1) if len(rest) > 1 else rest[0] if rest else left_CV
            if left_NV is not None:
                left_NV[part] = left_CV


def _bits(size: int) -> int:
    return max(1, (size - 1).bit_length())


def _index_stream(values: np.ndarray, size: int) -> Stream:
    return Stream(values=values.reshape(-1).astype(narrowest(_bits(size)), copy=False), bits=_bits(size))


class _Fit:
    """Fits a group's codebooks one after the other, and knows how they are stored."""

    def __init__(self, config: VPTQConfig, matrices: list[_Matrix], seed: int) -> None:
        self._config, self._matrices = config, matrices
        self._generator = np.random.default_rng(seed)
        self._streams: dict[str, dict[str, Stream]] = {}
        self.settings: dict[str, JSON] = config.stored({str(n): m.shape for n, m in enumerate(matrices)})
        self.books = settings_of(self.settings).books()

    def learn(self, role: str, left: Sequence[Tensor] = ()) -> Tensor:
        """Fits the codebook of this role, float32 [Q, K, U] as a reader decodes it, and notes its streams.

        Args:
            role: a key of `books`.
            left: of every matrix, what the codebooks before left over of the columns that are no outliers, [I - T, P];
                nothing if there are none before.
        """
        product, size, u = self.books[role]
        v = product * u
        most = max(FITTED_VECTORS, 32 * size)
        runs = []
        for number, m in enumerate(self._matrices):
            columns = slice(0, m.outliers) if role == "outlier_codebook" else slice(m.outliers, m.shape[1])
            take = partial(m.vectors, first=columns.start, length=v)
            if left:
                take = partial(torch.index_select, left[number].view(-1, v), 0)
            runs.append((take, m.diagonal_I[columns], m.row_mass(v, product)))
        x_NV, mass_NQ = self._drawn(runs, v, most)
        parts = [
            (np.ascontiguousarray(x_NV[:, q * u : (q + 1) * u]), np.ascontiguousarray(mass_NQ[:, q]))
            for q in range(product)
        ]
        entries = [
            kmeans(
                x_NU, size, iterations=self._config.kmeans_iterations, generator=self._generator, weights_N=mass_N
            ).centroids_KD
            for x_NU, mass_N in parts
        ]
        values, self._streams[role] = _round_codebook(torch.from_numpy(np.stack(entries)), self._config.codebook_bits)
        return values

    @property
    def streams(self) -> dict[str, Stream]:
        """The streams of all codebooks, in the order of `books`."""
        return {role + suffix: stream for role in self.books for suffix, stream in self._streams[role].items()}

    def _drawn(
        self, runs: list[tuple[Callable[[Tensor], Tensor], Tensor, Tensor]], length: int, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """About `most` of all vectors, evenly spread, or all where there are no more: [N, V], and weights [N, Q].

        Args:
            runs: of every matrix what gives its vectors by their places, column by column; the columns' factor in their
                weights [I], and the rows' [G, Q].
            length: V.
        """
        counts = [len(diagonal_I) * len(row_GQ) for _, diagonal_I, row_GQ in runs]
        count = sum(counts)
        if count <= most:
            places = np.arange(count)
        else:  # one from each of `most` stretches of equal length: no period of the matrix can fall in with them
            places = ((np.arange(most) + self._generator.random(most)) * (count / most)).astype(np.int64)
            places = np.unique(np.minimum(places, count - 1))
        x_NV = torch.empty(len(places), length)
        mass_NQ = torch.empty(len(places), runs[0][2].shape[1])
        begin = 0
        for (take, diagonal_I, row_GQ), own_count in zip(runs, counts, strict=True):
            first, end = np.searchsorted(places, (begin, begin + own_count))
            own = torch.from_numpy(places[first:end] - begin)
            x_NV[first:end] = take(own)
            torch.mul(diagonal_I[own // len(row_GQ), None], row_GQ[own % len(row_GQ)], out=mass_NQ[first:end])
            begin += own_count
        return x_NV.numpy(), mass_NQ.numpy()


def _round_codebook(entries: Tensor, bits: int) -> tuple[Tensor, dict[str, Stream]]:
    """Returns entries as a reader decodes them, float32, and their streams by the suffix to the codebook's role."""
    entries = entries.detach()
    if bits == 16:
        values = entries.half().float()
        return values, {"": Stream(values=float16_bits(values), bits=16)}
    step = (entries.abs().max() / 127).half().float()
    codes = (entries / step.clamp_min(SMALLEST_FLOAT16)).round().clamp(-127, 127)
    stored = (codes + EIGHT_BIT_OFFSET).reshape(-1).to(torch.uint8).cpu().numpy()
    return codes * step, {
        "": Stream(values=stored, bits=8),
        "_step": Stream(values=float16_bits(np.array([float(step)])), bits=16),
    }


class _VPTQTrainable(Trainable):
    """Codebooks float32 [Q, K, U] and one scale per matrix, rounded straight-through."""

    relative_step = 0.01

    def __init__(self, group: EncodedGroup) -> None:
        super().__init__()
        decoders.check(group)
        self._group, self._settings = group, settings_of(group.settings)
        self._roles, product = list(self._settings.books()), self._settings.product
        tensors = [parts(name, tensor, self._settings) for name, tensor in group.tensors.items()]
        values = [torch.from_numpy(book.copy()) for book in codebooks(group)]
        self.codebooks = nn.ParameterList([nn.Parameter(value) for value in values])
        self.scales = nn.Parameter(torch.tensor([float(found.scale) for found in tensors]))
        for t, found in enumerate(tensors):
            for m, (index_GI, size) in enumerate(zip(found.indices, self._settings.sizes, strict=True)):
                # The parts' codebooks lie one after the other.
                part_G = (np.arange(len(index_GI), dtype=np.int32) % product)[:, None]
                self._note(f"index_{t}_{m}", index_GI.astype(np.int32) + part_G * size)
            if found.outlier_index is not None:
                self._note(f"index_{t}_{len(self._settings.sizes)}", found.outlier_index.astype(np.int32))
            self._note(f"place_{t}", np.argsort(np.concatenate([found.columns, found.outliers])))

    def _note(self, name: str, values: np.ndarray) -> None:
        self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def _entries(self) -> list[Tensor]:
        """The codebooks, [Q K, U] each."""
        books = [round_through(c, _round_codebook(c, self._settings.bits)[0]) for c in self.codebooks]
        return [book_QKU.flatten(0, 1) for book_QKU in books]

    def weights(self) -> dict[str, Tensor]:
        codebooks = self._entries()
        scales_T = round_through(self.scales, self.scales.detach().half().float())
        weights = {}
        for t, (name, tensor) in enumerate(self._group.tensors.items()):
            rows, count = tensor.shape[0], len(self._settings.sizes)
            sum_GIU = F.embedding(getattr(self, f"index_{t}_0"), codebooks[0])
            for m, codebook in enumerate(codebooks[1:count], start=1):
                sum_GIU = sum_GIU + F.embedding(getattr(self, f"index_{t}_{m}"), codebook)
            sum_PI = sum_GIU.transpose(1, 2).flatten(0, 1)
            if "outlier_column" in tensor.streams:
                outlier_GIV = F.embedding(getattr(self, f"index_{t}_{count}"), codebooks[count])
                sum_PI = torch.cat([sum_PI, outlier_GIV.transpose(1, 2).flatten(0, 1)], dim=1)
                sum_PI = sum_PI[:, getattr(self, f"place_{t}")]
            weights[name] = sum_PI[:rows] * scales_T[t]
        return weights

    def export(self) -> EncodedGroup:
        """Returns the group with the parameters as they are now.

        Raises:
            CodecError: training drove a parameter to NaN or beyond float16.
        """
        scales = self.scales.detach().cpu().half()
        stored, values = {}, [scales]
        for role, parameter in zip(self._roles, self.codebooks, strict=True):
            rounded, streams = _round_codebook(parameter.cpu(), self._settings.bits)
            stored |= {role + suffix: stream for suffix, stream in streams.items()}
            values.append(rounded)
        if not all(torch.isfinite(x).all() for x in values):
            raise CodecError(
                "a codebook or scale is NaN or too large for float16", where="vptq", fix="lower the learning rate"
            )
        tensors = {
            name: EncodedTensor(
                shape=tensor.shape, streams={**tensor.streams, "scale": Stream(values=float16_bits(scale), bits=16)}
            )
            for (name, tensor), scale in zip(self._group.tensors.items(), scales, strict=True)
        }
        return EncodedGroup(codec=self._group.codec, settings=self._group.settings, tensors=tensors, shared=stored)


CODEC = VPTQCodec()
