"""VPTQ's decoder: sums of codebook entries, times the matrix's scale; `phase8.codecs.vptq` has the whole story.

Settings: `vector_dim` v, `codebook_bits` (8 or 16), `codebook_sizes` (K_m, one per codebook). Shared streams:
`codebook_m` [K_m v], float16 or 8-bit codes with an offset of 128, the latter with `codebook_m_step` [1], float16.
Streams of a matrix [O, I]: `scale` [1], float16; `index_m` [G I], entry of each vector, G = ceil(O / v).

    entry = (code - 128) * step          (8-bit codebooks)
    w[g v + i, j] = ((codebook_0[index_0[g, j], i] + codebook_1[index_1[g, j], i]) + ...) * scale

each operation rounded to float32. Shape legend: as in `phase8.codecs.vptq`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from phase8.codecs.streams import EncodedGroup, EncodedTensor, Layout, Stream, finite, float16_values, matrix_size
from phase8.config import VPTQConfig
from phase8.errors import ArtifactError, ConfigError

EIGHT_BIT_OFFSET = 128


def _checked(settings: Mapping[str, Any]) -> tuple[int, int, list[int]]:
    known = {"vector_dim", "codebook_bits", "codebook_sizes"}
    v: Any = settings.get("vector_dim")
    bits: Any = settings.get("codebook_bits")
    sizes: Any = settings.get("codebook_sizes")
    counts = [v, *sizes] if isinstance(sizes, list) else []
    if set(settings) != known or len(counts) < 2 or not all(type(count) is int and count >= 1 for count in counts):
        raise ArtifactError(f"impossible settings {dict(settings)}", where="vptq group", fix="write the file anew")
    try:
        # A codebook of one entry is possible: the encoder never writes more entries than there are vectors.
        VPTQConfig(vector_dim=v, codebook_bits=bits, num_codebooks=len(sizes), codebook_size=max(2, *sizes))
    except ConfigError as error:
        raise ArtifactError(f"a vptq group has impossible settings: {error.what}") from error
    return v, bits, sizes


def layout(settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """See `phase8.codecs.decoders`."""
    v, bits, sizes = _checked(settings)
    vectors = {}
    for name, shape in shapes.items():
        matrix_size(shape, name)
        vectors[name] = -(-shape[0] // v) * shape[1]
    if max(sizes) > max(1, sum(vectors.values())):
        raise ArtifactError("a codebook has more entries than there are vectors to code", where="vptq group")
    shared = {}
    for m, k in enumerate(sizes):
        shared[f"codebook_{m}"] = (k * v, bits)
        if bits == 8:
            shared[f"codebook_{m}_step"] = (1, 16)
    widths = {f"index_{m}": max(1, (k - 1).bit_length()) for m, k in enumerate(sizes)}
    tensors = {
        name: {"scale": (1, 16), **{role: (count, width) for role, width in widths.items()}}
        for name, count in vectors.items()
    }
    return Layout(tensors=tensors, shared=shared)


def codebooks(group: EncodedGroup) -> list[np.ndarray]:
    """Returns the codebooks, float32 [K_m, v] each.

    Raises:
        ArtifactError: an entry is NaN or infinite.
    """
    v, bits, sizes = _checked(group.settings)
    return [_codebook(group.shared, m, bits).reshape(k, v) for m, k in enumerate(sizes)]


def _codebook(streams: Mapping[str, Stream], m: int, bits: int) -> np.ndarray:
    codes = streams[f"codebook_{m}"].values
    if bits == 16:
        return finite(float16_values(codes), f"codebook_{m}")
    step = finite(float16_values(streams[f"codebook_{m}_step"].values), f"codebook_{m}_step")[0]
    return (codes.astype(np.float32) - EIGHT_BIT_OFFSET) * step


def parts(name: str, tensor: EncodedTensor, sizes: list[int]) -> tuple[np.float32, list[np.ndarray]]:
    """Takes apart a matrix that fits its layout: its scale, and one index array [G, I] per codebook.

    Raises:
        ArtifactError: the scale is not finite; an index points beyond its codebook.
    """
    scale = finite(float16_values(tensor.streams["scale"].values), name)[0]
    indices = []
    for m, k in enumerate(sizes):
        index = tensor.streams[f"index_{m}"].values
        if int(index.max()) >= k:
            raise ArtifactError(
                f"index_{m} points beyond the {k} entries of its codebook", where=name, fix="write the file anew"
            )
        indices.append(index.reshape(-1, tensor.shape[1]))
    return scale, indices


def decode(group: EncodedGroup) -> Iterator[tuple[str, np.ndarray]]:
    """See `phase8.codecs.decoders`."""
    v, _, sizes = _checked(group.settings)
    # One contiguous column of entries per element of a vector: a row of vectors is then one gather from it.
    columns_VK = [np.ascontiguousarray(codebook_KV.T) for codebook_KV in codebooks(group)]
    for name, tensor in group.tensors.items():
        scale, index_GI = parts(name, tensor, sizes)
        weights_OI = np.empty(tensor.shape, dtype=np.float32)
        for i in range(min(v, tensor.shape[0])):
            rows_RI = weights_OI[i::v]
            used = len(rows_RI)
            total_RI = columns_VK[0][i][index_GI[0][:used]]
            for column_VK, index in zip(columns_VK[1:], index_GI[1:], strict=True):
                total_RI += column_VK[i][index[:used]]
            np.multiply(total_RI, scale, out=rows_RI)
        yield name, weights_OI
