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

Shape legend: O output rows, P rows padded to a multiple of v, I input columns, G = P / v vectors of a column,
V elements of a vector, N vectors, K entries of a codebook.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
from phase8.codecs.bitpack import narrowest
from phase8.codecs.decoders.vptq import EIGHT_BIT_OFFSET, codebooks, parts, settings_of
from phase8.codecs.kmeans import kmeans
from phase8.config import VPTQConfig
from phase8.errors import CodecError

LOOP_BLOCK = 128
"""Columns between two lazy updates; changes the speed, not the result."""
SCORES_AT_ONCE = 1 << 18
"""Distances held in memory while entries are chosen: 1 MiB, which stays in a core's cache."""
SMALLEST_FLOAT16 = 2.0**-24


class VPTQCodec:
    """Residual vector quantisation. One call of `encode` fits one set of codebooks, shared by all its matrices."""

    name = "vptq"

    def encode(
        self,
        weights: Mapping[str, Tensor],
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
        v = config.vector_dim
        matrices = {
            name: _prepare(name, weight, importance.get(name, Importance()), config) for name, weight in weights.items()
        }
        generator = np.random.default_rng(seed)

        def fit(x_NV: Tensor, mass_N: Tensor, size: int) -> _Codebook:
            found = kmeans(
                x_NV.numpy(),
                min(size, len(x_NV)),
                iterations=config.kmeans_iterations,
                generator=generator,
                weights_N=mass_N.numpy(),
            )
            return _round_codebook(torch.from_numpy(found.centroids_KD), config.codebook_bits)

        outliers: _Codebook | None = None
        if any(m.outliers for m in matrices.values()):
            x_NV = [m.weight_IP[: m.outliers].reshape(-1, config.outlier_vector_dim) for m in matrices.values()]
            mass_N = [m.outlier_mass_N(config.outlier_vector_dim) for m in matrices.values()]
            outliers = fit(torch.cat(x_NV), torch.cat(mass_N), config.outlier_codebook_size)
        residual_IP = [m.weight_IP[m.outliers :] for m in matrices.values()]
        mass_N = torch.cat([m.mass_IG[m.outliers :].reshape(-1) for m in matrices.values()])
        codebooks: list[_Codebook] = []
        coded: list[_Coded] = []
        for number in range(config.num_codebooks):
            x_NV = torch.cat([r_IP.reshape(-1, v) for r_IP in residual_IP])
            codebooks.append(fit(x_NV, mass_N, config.codebook_size))
            entries = [codebook.values_KV for codebook in codebooks]
            coded = []
            for matrix in matrices.values():
                coded.append(_code_matrix(matrix, entries, None if outliers is None else outliers.values_KV))
                if on_progress is not None:
                    # Every pass over the columns counts as an equal part of the matrix's work.
                    size, passes = matrix.shape[0] * matrix.shape[1], config.num_codebooks
                    on_progress(size * (number + 1) // passes - size * number // passes)
            residual_IP = [each.left_IP for each in coded]

        sizes = [len(codebook.values_KV) for codebook in codebooks]
        settings = {"vector_dim": v, "codebook_bits": config.codebook_bits, "codebook_sizes": sizes}
        shared = {f"codebook_{m}": codebook for m, codebook in enumerate(codebooks)}
        if outliers is not None:
            shared["outlier_codebook"] = outliers
            settings["outliers"] = [_share(config), config.outlier_vector_dim, len(outliers.values_KV)]
        tensors = {
            name: EncodedTensor(shape=matrix.shape, streams=_matrix_streams(matrix, each, settings))
            for (name, matrix), each in zip(matrices.items(), coded, strict=True)
        }
        return EncodedGroup(codec=self.name, settings=settings, tensors=tensors, shared=_codebook_streams(shared))

    def decode(self, group: EncodedGroup) -> dict[str, np.ndarray]:
        """Returns every matrix, float32 [O, I]; see `Codec.decode`."""
        return dict(decoders.decode(group))

    def trainable(self, group: EncodedGroup) -> Trainable:
        """Returns codebooks and scales as parameters, the indices as buffers."""
        return _VPTQTrainable(group)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Matrix:
    """One matrix as the loop wants it: transposed, divided by its scale, columns by falling Hessian diagonal."""

    shape: tuple[int, int]
    scale: float
    order_I: Tensor
    outliers: int
    """How many of the columns, the first in that order, are outliers."""
    weight_IP: Tensor
    """float32, contiguous; the rows that pad O to a multiple of v are 0."""
    diagonal_I: Tensor
    """The damped Hessian's diagonal."""
    mass_IG: Tensor
    """k-means weight of each vector."""
    factor_II: Tensor | None
    """Upper Cholesky factor of the inverse Hessian; None where columns are coded independently."""
    row_GV: Tensor | None
    """Weights of the rows, 0 for padding; None where they are all 1."""

    def outlier_rows(self, outlier_v: int) -> Tensor | None:
        """`row_GV` for the outliers' vectors."""
        return None if self.row_GV is None else self.row_GV.reshape(-1, outlier_v)

    def outlier_mass_N(self, outlier_v: int) -> Tensor:
        """k-means weight of each vector of the outlier columns."""
        rows_GV = self.outlier_rows(outlier_v)
        groups = self.weight_IP.shape[1] // outlier_v
        row_G = torch.ones(groups) if rows_GV is None else rows_GV.mean(dim=1)
        return (self.diagonal_I[: self.outliers, None] * row_G).reshape(-1)


def _share(config: VPTQConfig) -> int:
    """Outlier columns in thousandths of all, as they are stored."""
    return round(1000 * config.outlier_columns)


def _prepare(name: str, weight_OI: Tensor, importance: Importance, config: VPTQConfig) -> _Matrix:
    if weight_OI.ndim != 2 or weight_OI.numel() == 0:
        raise CodecError(f"a matrix is needed, the shape is {tuple(weight_OI.shape)}", where=name, fix="protect it")
    weight_OI = weight_OI.detach().cpu().float()
    if not torch.isfinite(weight_OI).all():
        raise CodecError("the matrix holds NaN or infinite values", where=name, fix="check the checkpoint")
    rows, columns = weight_OI.shape
    scale = _scale(name, weight_OI)

    row_O = torch.ones(rows) if importance.row_O is None else importance.row_O.detach().cpu().float()
    if row_O.shape != (rows,) or not torch.isfinite(row_O).all() or (row_O < 0).any() or row_O.sum() == 0:
        raise CodecError(
            f"the row weights must be {rows} finite numbers, none negative, not all 0", where=name, fix="calibrate anew"
        )
    order_I, diagonal_I, factor_II = _second_order(name, weight_OI, importance.hessian_II, config)

    v = config.vector_dim
    padding = -rows % v
    weight_IP = F.pad((weight_OI / (scale or 1.0)).T[order_I], (0, padding)).contiguous()
    row_GV = F.pad(row_O, (0, padding)).reshape(-1, v)
    return _Matrix(
        shape=(rows, columns),
        scale=scale,
        order_I=order_I,
        outliers=columns * _share(config) // 1000,
        weight_IP=weight_IP,
        diagonal_I=diagonal_I,
        mass_IG=diagonal_I[:, None] * row_GV.mean(dim=1),
        factor_II=factor_II,
        row_GV=None if bool((row_GV == 1).all()) else row_GV,
    )


def _scale(name: str, weight_OI: Tensor) -> float:
    """The root-mean-square, rounded to float16; 0 for a matrix of zeros, which so decodes to zeros."""
    exact = float(weight_OI.double().square().mean().sqrt())
    scale = float(torch.tensor(exact).half())
    if scale == float("inf"):
        raise CodecError(f"the weights' root-mean-square {exact:.3g} exceeds float16", where=name, fix="protect it")
    return max(scale, SMALLEST_FLOAT16) if exact > 0 else 0.0


def _second_order(
    name: str, weight_OI: Tensor, hessian_II: Tensor | None, config: VPTQConfig
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the order of the columns, the damped diagonal in that order, and the factor U or None."""
    columns = weight_OI.shape[1]
    if hessian_II is None:
        # The outliers are then the columns of the largest weights; without outliers the order has no influence.
        energy_I = weight_OI.square().sum(0) if config.outlier_columns else torch.ones(columns)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Coded:
    """A matrix after the loop, in the loop's order of columns; the first T columns are outliers."""

    index_MIG: Tensor
    """int64 [codebooks, I - T, G]."""
    outlier_IG: Tensor
    """int64 [T, G v / v']."""
    left_IP: Tensor
    """What is left over of the compensated weights of the other columns, float32 [I - T, P]."""


def _code_matrix(matrix: _Matrix, entries: list[Tensor], outlier_KV: Tensor | None) -> _Coded:
    """Runs the loop over one matrix.

    Args:
        matrix: what to code; not changed.
        entries: the codebooks so far, each float32 [K, V].
        outlier_KV: the outliers' codebook.
    """
    columns, padded = matrix.weight_IP.shape
    v, special = entries[0].shape[1], matrix.outliers
    chooser = _Chooser(entries, matrix.row_GV)
    outlier_IG = torch.empty(0, 0, dtype=torch.int64)
    if special and outlier_KV is not None:
        outlier_v = outlier_KV.shape[1]
        outlier_chooser = _Chooser([outlier_KV], matrix.outlier_rows(outlier_v))
        outlier_IG = torch.empty(special, padded // outlier_v, dtype=torch.int64)
    if matrix.factor_II is None:
        if special:
            found, _ = outlier_chooser.choose(matrix.weight_IP[:special].reshape(-1, outlier_v))
            outlier_IG = found.reshape(special, -1)
        index_MN, left_NV = chooser.choose(matrix.weight_IP[special:].reshape(-1, v))
        return _Coded(
            index_MIG=index_MN.reshape(len(entries), columns - special, -1),
            outlier_IG=outlier_IG,
            left_IP=left_NV.reshape(columns - special, padded),
        )

    target_IP, left_IP = matrix.weight_IP.clone(), torch.empty_like(matrix.weight_IP)
    index_MIG = torch.empty(len(entries), columns, padded // v, dtype=torch.int64)
    divisor_I = matrix.factor_II.diagonal().tolist()
    for start in range(0, columns, LOOP_BLOCK):
        stop = min(start + LOOP_BLOCK, columns)
        error_BP = torch.empty(stop - start, padded)
        for q in range(start, stop):
            if q < special:
                found, left_GV = outlier_chooser.choose(target_IP[q].reshape(-1, outlier_v))
                outlier_IG[q] = found[0]
            else:
                index_MIG[:, q], left_GV = chooser.choose(target_IP[q].reshape(-1, v))
            left_IP[q] = left_GV.reshape(-1)
            torch.div(left_IP[q], divisor_I[q], out=error_BP[q - start])
            target_IP[q + 1 : stop].addr_(matrix.factor_II[q, q + 1 : stop], error_BP[q - start], alpha=-1)
        target_IP[stop:].addmm_(matrix.factor_II[start:stop, stop:].T, error_BP, alpha=-1)
    return _Coded(index_MIG=index_MIG[:, special:], outlier_IG=outlier_IG, left_IP=left_IP[special:])


class _Chooser:
    """Picks the entries whose greedy sum is nearest to a vector.

    The nearest entry c to x under row weights r has the largest sum_i r_i (x_i c_i - c_i^2 / 2): one matrix product of
    (r x, r) with (c, -c^2 / 2). Where r is 1 throughout, the second half is a bias.
    """

    def __init__(self, entries: list[Tensor], row_GV: Tensor | None) -> None:
        self._entries = entries
        self._row_GV = row_GV
        self._keys = [
            c.T.contiguous() if row_GV is None else torch.cat([c, c.square() / -2], dim=1).T.contiguous()
            for c in entries
        ]
        self._bias = [c.square().sum(dim=1) / -2 for c in entries]
        self._chunk = max(1, SCORES_AT_ONCE // max(len(c) for c in entries))

    def choose(self, x_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Returns index int64 [codebooks, N] and x - sum of the entries, float32 [N, V]; N is a multiple of G."""
        left_NV = x_NV
        index_MN = torch.empty(len(self._entries), len(x_NV), dtype=torch.int64)
        row_NV = None if self._row_GV is None else self._row_GV.repeat(len(x_NV) // len(self._row_GV), 1)
        for m, c_KV in enumerate(self._entries):
            for start in range(0, len(x_NV), self._chunk):
                part = slice(start, start + self._chunk)
                if row_NV is None:
                    score = torch.addmm(self._bias[m], left_NV[part], self._keys[m])
                else:
                    score = torch.cat([left_NV[part] * row_NV[part], row_NV[part]], dim=1) @ self._keys[m]
                # numpy's argmax is three times as fast as torch's on rows this short.
                index_MN[m, part] = torch.from_numpy(score.numpy().argmax(axis=1))
            left_NV = left_NV - c_KV[index_MN[m]]
        return index_MN, left_NV


def _matrix_streams(matrix: _Matrix, coded: _Coded, settings: Mapping[str, JSON]) -> dict[str, Stream]:
    """The streams of a matrix, the columns in the matrix's own order."""
    outlier_I, other_I = matrix.order_I[: matrix.outliers], matrix.order_I[matrix.outliers :]
    streams = {"scale": Stream(values=float16_bits(np.array([matrix.scale])), bits=16)}
    for m, (index_IG, size) in enumerate(zip(coded.index_MIG, settings["codebook_sizes"], strict=True)):
        streams[f"index_{m}"] = _index_stream(index_IG[other_I.argsort()].T.reshape(-1).numpy(), size)
    if matrix.outliers:
        streams["outlier_column"] = _index_stream(outlier_I.sort().values.numpy(), matrix.shape[1])
        index_IG = coded.outlier_IG[outlier_I.argsort()]
        streams["outlier_index"] = _index_stream(index_IG.T.reshape(-1).numpy(), settings["outliers"][2])
    return streams


def _index_stream(values: np.ndarray, size: int) -> Stream:
    bits = max(1, (size - 1).bit_length())
    return Stream(values=values.astype(narrowest(bits)), bits=bits)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Codebook:
    """A codebook in its stored precision."""

    values_KV: Tensor
    """float32, exactly what a reader decodes."""
    codes: np.ndarray
    """uint8 with an offset of 128, or float16 bits; 1-D."""
    step: float | None
    """8-bit codebooks: the value of one code step, a float16 number."""


def _round_codebook(entries_KV: Tensor, bits: int) -> _Codebook:
    entries_KV = entries_KV.detach()
    if bits == 16:
        values_KV = entries_KV.half().float()
        return _Codebook(values_KV=values_KV, codes=float16_bits(values_KV), step=None)
    step = (entries_KV.abs().max() / 127).half().float()
    code_KV = (entries_KV / step.clamp_min(SMALLEST_FLOAT16)).round().clamp(-127, 127)
    codes = (code_KV + EIGHT_BIT_OFFSET).reshape(-1).to(torch.uint8).cpu().numpy()
    return _Codebook(values_KV=code_KV * step, codes=codes, step=float(step))


def _codebook_streams(codebooks: Mapping[str, _Codebook]) -> dict[str, Stream]:
    streams = {}
    for role, codebook in codebooks.items():
        streams[role] = Stream(values=codebook.codes, bits=16 if codebook.step is None else 8)
        if codebook.step is not None:
            streams[f"{role}_step"] = Stream(values=float16_bits(np.array([codebook.step])), bits=16)
    return streams


class _VPTQTrainable(Trainable):
    """Codebooks float32 [K, V] and one scale per matrix, rounded to their stored precision straight-through."""

    relative_step = 0.01

    def __init__(self, group: EncodedGroup) -> None:
        super().__init__()
        decoders.check(group)
        self._group, self._bits = group, group.settings["codebook_bits"]
        self._settings = settings_of(group.settings)
        tensors = [parts(name, tensor, self._settings) for name, tensor in group.tensors.items()]
        self.codebooks = nn.ParameterList([nn.Parameter(torch.from_numpy(c.copy())) for c in codebooks(group)])
        self.scales = nn.Parameter(torch.tensor([float(found.scale) for found in tensors]))
        for t, found in enumerate(tensors):
            outliers = [] if found.outlier_index is None else [found.outlier_index]
            for m, index_GI in enumerate([*found.indices, *outliers]):
                self.register_buffer(f"index_{t}_{m}", torch.from_numpy(index_GI.astype(np.int32)), persistent=False)
            place_I = torch.from_numpy(np.concatenate([found.columns, found.outliers])).argsort()
            self.register_buffer(f"place_{t}", place_I, persistent=False)

    def weights(self) -> dict[str, Tensor]:
        codebooks = [round_through(c, _round_codebook(c, self._bits).values_KV) for c in self.codebooks]
        scales_T = round_through(self.scales, self.scales.detach().half().float())
        weights = {}
        for t, (name, tensor) in enumerate(self._group.tensors.items()):
            rows, count = tensor.shape[0], len(self._settings.sizes)
            sum_GIV = F.embedding(getattr(self, f"index_{t}_0"), codebooks[0])
            for m, codebook in enumerate(codebooks[1:count], start=1):
                sum_GIV = sum_GIV + F.embedding(getattr(self, f"index_{t}_{m}"), codebook)
            sum_PI = sum_GIV.transpose(1, 2).flatten(0, 1)
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
        codebooks = [_round_codebook(c.cpu(), self._bits) for c in self.codebooks]
        if not all(torch.isfinite(x).all() for x in (scales, *(c.values_KV for c in codebooks))):
            raise CodecError(
                "a codebook or scale is NaN or too large for float16", where="vptq", fix="lower the learning rate"
            )
        roles = [f"codebook_{m}" for m in range(len(self._settings.sizes))]
        roles += ["outlier_codebook"] if self._settings.share else []
        tensors = {
            name: EncodedTensor(
                shape=tensor.shape, streams={**tensor.streams, "scale": Stream(values=float16_bits(scale), bits=16)}
            )
            for (name, tensor), scale in zip(self._group.tensors.items(), scales, strict=True)
        }
        return EncodedGroup(
            codec=self._group.codec,
            settings=self._group.settings,
            tensors=tensors,
            shared=_codebook_streams(dict(zip(roles, codebooks, strict=True))),
        )
