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

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from phase8.codecs import decoders
from phase8.codecs.base import (
    EncodedGroup,
    EncodedTensor,
    Importance,
    Progress,
    Stream,
    Trainable,
    float16_bits,
)
from phase8.codecs.matrices import Matrix, matrices
from phase8.codecs.vptq.books import Fit
from phase8.codecs.vptq.choose import Chooser, choose_again, index_bits, index_stream
from phase8.codecs.vptq.matrix import Prepared, prepare
from phase8.codecs.vptq.settings import VPTQConfig
from phase8.codecs.vptq.train import VPTQTrainable
from phase8.lossless.bitpack import narrowest

LOOP_BLOCK = 128
"""Columns between two lazy updates; changes the speed, not the result."""


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
            name: prepare(name, matrix, importance.get(name, Importance()), config)
            for name, matrix in matrices(weights).items()
        }
        fit = Fit(config, list(taken.values()), seed)
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
        return VPTQTrainable(group)

    def choose_again(
        self, group: EncodedGroup, weights: Mapping[str, Tensor], price: float, *, cheaper: float | None = None
    ) -> EncodedGroup:
        """See `phase8.codecs.base.Priced`."""
        return choose_again(group, weights, price, cheaper=cheaper)


def _coded(matrix: Prepared, levels: list[Tensor], outlier_KV: Tensor | None) -> dict[str, Stream]:
    """The streams of a matrix, strip by strip, the columns in the matrix's own order."""
    product, size, u = levels[0].shape
    outlier_I, other_I = matrix.order_I[: matrix.outliers], matrix.order_I[matrix.outliers :]
    streams = {"scale": Stream(values=float16_bits(np.array([matrix.scale])), bits=16)}
    index_MGI = [
        np.empty((matrix.padded // u, matrix.ordinary), dtype=narrowest(index_bits(level_QKU.shape[1])))
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
        streams[f"index_{m}"] = index_stream(all_GI, level_QKU.shape[1])
    if matrix.outliers and outlier_KV is not None:
        streams["outlier_column"] = index_stream(outlier_I.sort().values.numpy(), matrix.shape[1])
        streams["outlier_index"] = index_stream(outlier_GI, len(outlier_KV))
    return streams


def _left_over(matrix: Prepared, levels: list[Tensor], outlier_KV: Tensor | None) -> Tensor:
    """What is left over of the compensated weights of the columns that are no outliers, float32 [I - T, P]."""
    left_IP = torch.empty(matrix.ordinary, matrix.padded)
    for strip in matrix.strips():
        left_IP[:, strip] = _code_strip(matrix, strip, levels, outlier_KV, last=False)[2]
    return left_IP


def _code_strip(
    matrix: Prepared, strip: slice, levels: list[Tensor], outlier_KV: Tensor | None, *, last: bool
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
    chooser = Chooser(levels, matrix.row_weights(strip, v))
    outlier_v, outlier_chooser = 1, None
    if outlier_KV is not None:
        outlier_v = outlier_KV.shape[1]
        outlier_chooser = Chooser([outlier_KV[None]], matrix.row_weights(strip, outlier_v))
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


CODEC = VPTQCodec()
