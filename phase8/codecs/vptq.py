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
stored precision before the loop, so that it compensates that rounding too; no codebooks of their own for outliers.

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
    EncodedGroup,
    EncodedTensor,
    Importance,
    Progress,
    Stream,
    Trainable,
    float16_bits,
    round_through,
)
from phase8.codecs.decoders.vptq import EIGHT_BIT_OFFSET, codebooks, parts
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
        residual_IP = [m.weight_IP for m in matrices.values()]
        mass_N = np.concatenate([m.mass_IG.numpy().reshape(-1) for m in matrices.values()])
        codebooks: list[_Codebook] = []
        indices: list[list[Tensor]] = []
        for number in range(config.num_codebooks):
            x_NV = torch.cat([r_IP.reshape(-1, v) for r_IP in residual_IP]).numpy()
            found = kmeans(
                x_NV,
                min(config.codebook_size, len(x_NV)),
                iterations=config.kmeans_iterations,
                generator=generator,
                weights_N=mass_N,
            )
            codebooks.append(_round_codebook(torch.from_numpy(found.centroids_KD), config.codebook_bits))
            entries = [codebook.values_KV for codebook in codebooks]
            residual_IP, indices = [], []
            for matrix in matrices.values():
                index_IG, left_IP = _code_matrix(matrix, entries)
                residual_IP.append(left_IP)
                indices.append(index_IG)
                if on_progress is not None:
                    # Every pass over the columns counts as an equal part of the matrix's work.
                    size, passes = matrix.shape[0] * matrix.shape[1], config.num_codebooks
                    on_progress(size * (number + 1) // passes - size * number // passes)

        sizes = [len(codebook.values_KV) for codebook in codebooks]
        tensors = {
            name: EncodedTensor(
                shape=matrix.shape,
                streams={
                    "scale": Stream(values=float16_bits(np.array([matrix.scale])), bits=16),
                    **{
                        f"index_{m}": _index_stream(_restore_order(index_IG, matrix.order_I), sizes[m])
                        for m, index_IG in enumerate(per_codebook)
                    },
                },
            )
            for (name, matrix), per_codebook in zip(matrices.items(), indices, strict=True)
        }
        return EncodedGroup(
            codec=self.name,
            settings={"vector_dim": v, "codebook_bits": config.codebook_bits, "codebook_sizes": sizes},
            tensors=tensors,
            shared=_codebook_streams(codebooks),
        )

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
    weight_IP: Tensor
    """float32, contiguous; the rows that pad O to a multiple of v are 0."""
    mass_IG: Tensor
    """k-means weight of each vector."""
    factor_II: Tensor | None
    """Upper Cholesky factor of the inverse Hessian; None where columns are coded independently."""
    row_GV: Tensor | None
    """Weights of the rows, 0 for padding; None where they are all 1."""


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
    order_I, diagonal_I, factor_II = _second_order(name, importance.hessian_II, columns, config)

    v = config.vector_dim
    padding = -rows % v
    weight_IP = F.pad((weight_OI / (scale or 1.0)).T[order_I], (0, padding)).contiguous()
    row_GV = F.pad(row_O, (0, padding)).reshape(-1, v)
    return _Matrix(
        shape=(rows, columns),
        scale=scale,
        order_I=order_I,
        weight_IP=weight_IP,
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
    name: str, hessian_II: Tensor | None, columns: int, config: VPTQConfig
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the order of the columns, the damped diagonal in that order, and the factor U or None."""
    if hessian_II is None:
        return torch.arange(columns), torch.ones(columns), None
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


def _code_matrix(matrix: _Matrix, entries: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Runs the loop over one matrix.

    Args:
        matrix: what to code; not changed.
        entries: the codebooks so far, each float32 [K, V].

    Returns:
        index int64 [codebooks, I, G] and what is left over of the compensated weights, float32 [I, P]; both in the
        order of the loop.
    """
    columns, padded = matrix.weight_IP.shape
    v = entries[0].shape[1]
    chooser = _Chooser(entries, matrix.row_GV)
    if matrix.factor_II is None:
        index_MN, left_NV = chooser.choose(matrix.weight_IP.reshape(-1, v))
        return index_MN.reshape(len(entries), columns, -1), left_NV.reshape(columns, padded)

    target_IP, left_IP = matrix.weight_IP.clone(), torch.empty_like(matrix.weight_IP)
    index_MIG = torch.empty(len(entries), columns, padded // v, dtype=torch.int64)
    divisor_I = matrix.factor_II.diagonal().tolist()
    for start in range(0, columns, LOOP_BLOCK):
        stop = min(start + LOOP_BLOCK, columns)
        error_BP = torch.empty(stop - start, padded)
        for q in range(start, stop):
            index_MIG[:, q], left_GV = chooser.choose(target_IP[q].reshape(-1, v))
            left_IP[q] = left_GV.reshape(-1)
            torch.div(left_IP[q], divisor_I[q], out=error_BP[q - start])
            target_IP[q + 1 : stop].addr_(matrix.factor_II[q, q + 1 : stop], error_BP[q - start], alpha=-1)
        target_IP[stop:].addmm_(matrix.factor_II[start:stop, stop:].T, error_BP, alpha=-1)
    return index_MIG, left_IP


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


def _restore_order(index_IG: Tensor, order_I: Tensor) -> np.ndarray:
    """Loop order -> the matrix's own column order, flattened from [G, I]."""
    restored_IG = torch.empty_like(index_IG)
    restored_IG[order_I] = index_IG
    return restored_IG.T.reshape(-1).numpy()


def _index_stream(values: np.ndarray, size: int) -> Stream:
    return Stream(values=values.astype(np.uint8 if size <= 256 else np.uint16), bits=max(1, (size - 1).bit_length()))


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


def _codebook_streams(codebooks: list[_Codebook]) -> dict[str, Stream]:
    streams = {}
    for m, codebook in enumerate(codebooks):
        streams[f"codebook_{m}"] = Stream(values=codebook.codes, bits=16 if codebook.step is None else 8)
        if codebook.step is not None:
            streams[f"codebook_{m}_step"] = Stream(values=float16_bits(np.array([codebook.step])), bits=16)
    return streams


class _VPTQTrainable(Trainable):
    """Codebooks float32 [K, V] and one scale per matrix, rounded to their stored precision straight-through."""

    relative_step = 0.01

    def __init__(self, group: EncodedGroup) -> None:
        super().__init__()
        decoders.check(group)
        self._group, self._bits = group, group.settings["codebook_bits"]
        tensors = [parts(name, tensor, group.settings["codebook_sizes"]) for name, tensor in group.tensors.items()]
        self.codebooks = nn.ParameterList([nn.Parameter(torch.from_numpy(c.copy())) for c in codebooks(group)])
        self.scales = nn.Parameter(torch.tensor([float(scale) for scale, _ in tensors]))
        for t, (_, indices) in enumerate(tensors):
            for m, index_GI in enumerate(indices):
                self.register_buffer(f"index_{t}_{m}", torch.from_numpy(index_GI.astype(np.int32)), persistent=False)

    def weights(self) -> dict[str, Tensor]:
        codebooks = [round_through(c, _round_codebook(c, self._bits).values_KV) for c in self.codebooks]
        scales_T = round_through(self.scales, self.scales.detach().half().float())
        weights = {}
        for t, (name, tensor) in enumerate(self._group.tensors.items()):
            rows, columns = tensor.shape
            sum_GIV = F.embedding(getattr(self, f"index_{t}_0"), codebooks[0])
            for m, codebook in enumerate(codebooks[1:], start=1):
                sum_GIV = sum_GIV + F.embedding(getattr(self, f"index_{t}_{m}"), codebook)
            weights[name] = sum_GIV.transpose(1, 2).reshape(-1, columns)[:rows] * scales_T[t]
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
            shared=_codebook_streams(codebooks),
        )
