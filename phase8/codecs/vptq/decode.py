"""VPTQ's decoder: sums of codebook entries, times the matrix's scale; `phase8.codecs.vptq.encode` has the whole story.

Settings: `vector_dim` v, `codebook_bits` (8 or 16), `codebook_sizes` (K_m, one per codebook). Shared streams:
`codebook_m` [K_m v], float16 or 8-bit codes with an offset of 128, the latter with `codebook_m_step` [1], float16.
Streams of a matrix [O, I]: `scale` [1], float16; `index_m` [G I], entry of each vector, G = ceil(O / v).

    entry = (code - 128) * step          (8-bit codebooks)
    w[g v + i, j] = ((codebook_0[index_0[g, j], i] + codebook_1[index_1[g, j], i]) + ...) * scale

each operation rounded to float32.

Outlier columns: the setting `outliers` [share, v', K'], absent where there are none. T = floor(I share / 1000) columns
of a matrix, named by `outlier_column` [T] in ascending order, are coded with the shared `outlier_codebook` [K' v'] and
`outlier_index` [G v / v' T]; `index_m` [G (I - T)] then counts the other columns.

Product codebooks: the setting `product` Q, absent where it is 1, cuts a vector into Q parts of u = v / Q elements, each
with entries and an index of its own. `codebook_m` holds Q codebooks of K_m entries of u elements, one after the other;
`index_m` [G Q I] has a row of indices for every part of every vector. Element q u + i of vector (g, j) is

    codebook_m[q, index_m[g Q + q, j], i]

Shape legend: as in `phase8.codecs.vptq.encode`; T outlier columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from phase8.codecs.bounds import whole_numbers
from phase8.codecs.streams import EncodedGroup, EncodedTensor, Layout, Stream, finite, float16_values, matrix_size
from phase8.errors import ArtifactError

EIGHT_BIT_OFFSET = 128
BOUNDS = {
    "vector_dim": (1, 1024),
    "product": (1, 1024),
    "codebooks": (1, 16),
    "smallest codebook": (1, 65536),
    "largest codebook": (1, 65536),
    "outlier columns": (0, 500),  # thousandths of all
    "outlier_vector_dim": (1, 1024),
    "outlier codebook": (0, 65536),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked settings of a group."""

    v: int
    sizes: list[int]
    product: int = 1
    bits: int = 8
    """Width of an entry's numbers."""
    share: int = 0
    """Outlier columns, in thousandths of all; 0: none, and no codebook for them."""
    outlier_v: int = 1
    outlier_size: int = 0

    def outliers(self, columns: int) -> int:
        """How many of a matrix's columns are outliers."""
        return columns * self.share // 1000

    def books(self) -> dict[str, tuple[int, int, int]]:
        """Parts of a vector, entries and elements of every codebook, by role; the outliers' comes last."""
        found = {f"codebook_{m}": (self.product, k, self.v // self.product) for m, k in enumerate(self.sizes)}
        return {**found, "outlier_codebook": (1, self.outlier_size, self.outlier_v)} if self.share else found


def settings_of(settings: Mapping[str, Any]) -> Settings:
    """Checks the settings of a group.

    Raises:
        ArtifactError: a setting is missing, unknown or out of range.
    """
    v: Any = settings.get("vector_dim")
    sizes: Any = settings.get("codebook_sizes")
    product: Any = settings.get("product", 1)
    outliers: Any = settings.get("outliers", [])
    chosen: Any = settings.get("codebook_bits")
    counts = [v, product, *sizes] if isinstance(sizes, list) else []
    if "outliers" in settings:
        counts += outliers if isinstance(outliers, list) and len(outliers) == 3 else [None]
    known = {"vector_dim", "codebook_sizes", "codebook_bits"} | settings.keys() & {"product", "outliers"}
    if (
        set(settings) != known
        or len(counts) < 3
        or not all(type(count) is int and count >= 1 for count in counts)
        or ("product" in settings and product == 1)
        or type(chosen) is not int
    ):
        raise ArtifactError(f"impossible settings {dict(settings)}", where="vptq group", fix="write the file anew")
    found = Settings(v, sizes, product, chosen, *outliers)
    values = {
        "vector_dim": v,
        "product": product,
        "codebooks": len(sizes),
        "smallest codebook": min(sizes),
        "largest codebook": max(sizes),
        "outlier columns": found.share,
        "outlier_vector_dim": found.outlier_v,
        "outlier codebook": found.outlier_size,
    }
    whole_numbers(values, BOUNDS, "vptq group")
    if v % product or v % found.outlier_v or found.bits not in (8, 16):
        raise ArtifactError(f"a vptq group has impossible settings: {dict(settings)}", where="vptq group")
    return found


def layout(settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """See `phase8.codecs.decoders`."""
    found = settings_of(settings)
    vectors, outliers, tensors = 0, 0, {}
    table = sum(math.prod(extents) for extents in found.books().values())
    operations = 2 * table
    for name, shape in shapes.items():
        operations += (3 * len(found.sizes) + 3) * matrix_size(shape, name)
        groups, special = -(-shape[0] // found.v), found.outliers(shape[1])
        count = groups * (shape[1] - special)
        vectors += count
        indices = {f"index_{m}": (count * found.product, _width(k)) for m, k in enumerate(found.sizes)}
        tensors[name] = {"scale": (1, 16), **indices}
        if special:
            own = groups * (found.v // found.outlier_v) * special
            outliers += own
            tensors[name]["outlier_column"] = (special, _width(shape[1]))
            tensors[name]["outlier_index"] = (own, _width(found.outlier_size))
    if max(found.sizes) > max(1, vectors) or found.outlier_size > max(1, outliers):
        raise ArtifactError("a codebook has more entries than there are vectors to code", where="vptq group")
    shared = {}
    for role, extents in found.books().items():
        shared[role] = (math.prod(extents), found.bits)
        if found.bits == 8:
            shared[f"{role}_step"] = (1, 16)
    return Layout(tensors=tensors, shared=shared, operations=operations, table=2 * table)


def _width(count: int) -> int:
    return max(1, (count - 1).bit_length())


def codebooks(group: EncodedGroup) -> list[np.ndarray]:
    """Returns the codebooks, float32 [Q, K_m, u] each; the outliers', where there are such, [1, K', v'] at the end.

    Raises:
        ArtifactError: an entry is NaN or infinite.
    """
    settings = settings_of(group.settings)
    books = []
    for role, extents in settings.books().items():
        if settings.bits == 16:
            books.append(float16_stream(group.shared, role).reshape(extents))
        else:
            codes = group.shared[role].values.astype(np.float32) - EIGHT_BIT_OFFSET
            books.append((codes * float16_stream(group.shared, f"{role}_step")[0]).reshape(extents))
    return books


def float16_stream(streams: Mapping[str, Stream], role: str) -> np.ndarray:
    """The numbers of a stream, float32.

    Raises:
        ArtifactError: one is NaN or infinite.
    """
    return finite(float16_values(streams[role].values), role)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a matrix is made of."""

    scale: np.float32
    indices: list[np.ndarray]
    """One array [G Q, I - T] per codebook."""
    columns: np.ndarray
    """The columns that `indices` code, int64 [I - T]."""
    outliers: np.ndarray
    """The outlier columns, int64 [T]."""
    outlier_index: np.ndarray | None
    """[G v / v', T]; None where T is 0."""


def parts(name: str, tensor: EncodedTensor, settings: Settings) -> Parts:
    """Takes apart a matrix that fits its layout.

    Raises:
        ArtifactError: the scale is not finite; an index points beyond its codebook; outlier columns that do not ascend.
    """
    scale = finite(float16_values(tensor.streams["scale"].values), name)[0]
    columns, special = tensor.shape[1], settings.outliers(tensor.shape[1])
    outliers, outlier_index = np.empty(0, dtype=np.int64), None
    if special:
        outliers = tensor.streams["outlier_column"].values.astype(np.int64)
        if (np.diff(outliers) <= 0).any() or outliers[-1] >= columns:
            raise ArtifactError("the outlier columns do not ascend within the matrix", where=name)
        outlier_index = _index(name, tensor, "outlier_index", settings.outlier_size, special)
    indices = [_index(name, tensor, f"index_{m}", k, columns - special) for m, k in enumerate(settings.sizes)]
    return Parts(scale, indices, np.setdiff1d(np.arange(columns), outliers), outliers, outlier_index)


def _index(name: str, tensor: EncodedTensor, role: str, size: int, columns: int) -> np.ndarray:
    index = tensor.streams[role].values
    if int(index.max()) >= size:
        raise ArtifactError(
            f"{role} points beyond the {size} entries of its codebook", where=name, fix="write the file anew"
        )
    return index.reshape(-1, columns)


def decode(group: EncodedGroup) -> Iterator[tuple[str, np.ndarray]]:
    """See `phase8.codecs.decoders`."""
    settings = settings_of(group.settings)
    # One contiguous column of entries per element of a vector: a row of vectors is then one gather from it.
    books_QUK = [np.ascontiguousarray(book_QKU.transpose(0, 2, 1)) for book_QKU in codebooks(group)]
    ordinary = books_QUK[: len(settings.sizes)]
    for name, tensor in group.tensors.items():
        found = parts(name, tensor, settings)
        weights_OI = np.empty(tensor.shape, dtype=np.float32)
        if found.outlier_index is None:
            _fill(weights_OI, slice(None), ordinary, found.indices, found.scale)
        else:
            _fill(weights_OI, found.columns, ordinary, found.indices, found.scale)
            _fill(weights_OI, found.outliers, books_QUK[-1:], [found.outlier_index], found.scale)
        yield name, weights_OI


def _fill(
    weights_OI: np.ndarray,
    columns: np.ndarray | slice,
    books: list[np.ndarray],
    indices: list[np.ndarray],
    scale: np.float32,
) -> None:
    """Writes the columns that these codebooks, [Q, u, K] each, and indices, [G Q, columns] each, stand for."""
    product, u, _ = books[0].shape
    for place in range(min(product * u, len(weights_OI))):
        q, i = divmod(place, u)
        rows_RI = weights_OI[place :: product * u]
        picked = [index[q::product][: len(rows_RI)] for index in indices]
        total_RI = books[0][q, i][picked[0]]
        for book_QUK, index_RI in zip(books[1:], picked[1:], strict=True):
            total_RI += book_QUK[q, i][index_RI]
        total_RI *= scale
        rows_RI[:, columns] = total_RI
