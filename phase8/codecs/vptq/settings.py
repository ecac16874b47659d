"""The settings of the VPTQ stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from phase8.checks import require
from phase8.codecs.settings import Shapes, StageSettings, check_limit


class Sharing(Enum):
    """Which matrices share a codebook."""

    tensor = "tensor"
    kind = "kind"
    model = "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class VPTQConfig(StageSettings):
    """VPTQ (arXiv 2409.17066): indices into codebooks of weight vectors, chosen under the layer's Hessian."""

    vector_dim: int = 4
    """v: consecutive output rows of one input column that form a vector."""
    product: int = 1
    """Consecutive parts of a vector, each with codebooks and indices of its own; divides `vector_dim`."""
    codebook_size: int = 1024
    """Entries of each codebook."""
    num_codebooks: int = 1
    """Residual codebooks: each codes what the ones before left over."""
    share: Sharing = Sharing.kind
    """Which matrices share the codebooks."""
    share_layers: int = 0
    """Only matrices of so many consecutive layers share them; 0: of all layers. With `share=model`, 1 is one set of
    codebooks per layer."""
    codebook_bits: int = 8
    """16: float16 entries; 8: 8-bit entries with one float16 scale per codebook."""
    hessian_damping: float = 1.0
    """Added to the Hessian's diagonal, in units of its mean. The paper's 0.01 fits the layers' outputs more closely;
    after reconstruction 1.0 came out better (experiments/LOG.md)."""
    second_order: bool = True
    """The column loop that pushes each column's error into the columns still to be coded."""
    kmeans_iterations: int = 20
    outlier_columns: float = 0.0
    """Share of a matrix's columns, those of the Hessian's largest diagonal, that have a codebook of their own."""
    outlier_vector_dim: int = 2
    """Elements of an outlier column's vectors; divides `vector_dim`."""
    outlier_codebook_size: int = 1024
    """Entries of the outliers' codebook."""

    VARIED: ClassVar = ("vector_dim", "codebook_size", "num_codebooks")
    # 0.5 to 4 bits per weight; at some rates a small codebook beside a large one, for small models
    GRID: ClassVar = (
        (8, 16, 1), (16, 256, 1), (8, 256, 1), (4, 64, 1), (6, 512, 1), (4, 256, 1), (4, 512, 1), (4, 1024, 1),
        (2, 64, 1), (2, 128, 1), (2, 256, 1),
    )  # fmt: skip
    SHARES: ClassVar = True
    SAMPLED_WEIGHTS: ClassVar = 1 << 15  # a codebook needs many vectors, else it fits the sample too well
    SAMPLED_ROWS: ClassVar = 48  # whole vectors of the candidates' lengths

    def __post_init__(self) -> None:
        check_limit(self, "vptq.")
        fix = "a good start is vector_dim=8 codebook_size=256 num_codebooks=2, which is 2 bits per weight"
        for name, low, high in (
            ("vector_dim", 1, 1024),
            ("product", 1, 1024),
            ("codebook_size", 2, 65536),
            ("num_codebooks", 1, 16),
            ("share_layers", 0, 100_000),
            ("kmeans_iterations", 1, 10_000),
            ("outlier_vector_dim", 1, 1024),
            ("outlier_codebook_size", 2, 65536),
        ):
            value = getattr(self, name)
            require(
                low <= value <= high, f"vptq.{name} is {value}, needs {low} to {high}", where=f"vptq.{name}", fix=fix
            )
        require(
            self.vector_dim % self.product == 0,
            f"vptq.product is {self.product}, which does not divide vptq.vector_dim ({self.vector_dim})",
            where="vptq.product",
            fix="1 divides everything; product=2 vector_dim=8 takes turns between two codebooks of vectors of 4",
        )
        require(
            self.codebook_bits in (8, 16),
            f"vptq.codebook_bits is {self.codebook_bits}, needs 8 or 16",
            where="vptq.codebook_bits",
            fix="16 is exact enough for anything; 8 halves the codebooks",
        )
        require(
            0 < self.hessian_damping < float("inf"),
            f"vptq.hessian_damping is {self.hessian_damping}, needs a finite number above 0",
            where="vptq.hessian_damping",
            fix="the paper's setting is 0.01",
        )
        require(
            0 <= self.outlier_columns <= 0.5,
            f"vptq.outlier_columns is {self.outlier_columns}, needs 0 to 0.5",
            where="vptq.outlier_columns",
            fix="the paper takes 0.01 to 0.05",
        )
        require(
            self.outlier_columns == 0 or self.vector_dim % self.outlier_vector_dim == 0,
            f"vptq.outlier_vector_dim is {self.outlier_vector_dim}, which does not divide vptq.vector_dim "
            f"({self.vector_dim})",
            where="vptq.outlier_vector_dim",
            fix="1 divides everything",
        )

    @property
    def outlier_share(self) -> int:
        """Outlier columns in thousandths of all, as they are stored."""
        return round(1000 * self.outlier_columns)

    def bits_per_weight(self) -> float:
        """See `StageSettings`."""
        indices = self.num_codebooks * self.product
        return indices * max(1, (self.codebook_size - 1).bit_length()) / self.vector_dim

    def stored(self, shapes: Shapes) -> dict[str, Any]:
        """See `StageSettings`. No codebook has more entries than there are vectors."""
        v, few = self.vector_dim, self.outlier_vector_dim
        vectors = own = 0
        for rows, columns in shapes.values():
            padded, outliers = -(-rows // v) * v, columns * self.outlier_share // 1000
            vectors += (columns - outliers) * padded // v
            own += outliers * padded // few
        stored: dict[str, Any] = {"vector_dim": v, "codebook_bits": self.codebook_bits}
        stored["codebook_sizes"] = [min(self.codebook_size, vectors)] * self.num_codebooks
        if self.product > 1:
            stored["product"] = self.product
        if own:
            stored["outliers"] = [self.outlier_share, few, min(self.outlier_codebook_size, own)]
        return stored

    def richer(self, severe: bool) -> Iterator[dict[str, Any]]:
        """See `StageSettings`."""
        if severe:
            yield {"num_codebooks": self.num_codebooks + 1}
        yield {"codebook_size": 2 * self.codebook_size}
        yield {"num_codebooks": self.num_codebooks + 1}

    def pool_of(self, name: str, kind: str) -> str:
        """`share` and `share_layers` decide. A matrix's layer is the first number in its name; those that belong to no
        layer, such as the embedding, share among themselves as matrices of one layer do. Example: with `share=kind` and
        `share_layers=2`, `model.layers.5.mlp.up_proj.weight` shares with layer 4's `up_proj` alone."""
        if self.share is Sharing.tensor:
            return name
        pool = kind if self.share is Sharing.kind else "model"
        layer = next((int(part) for part in name.split(".") if part.isdecimal()), None)
        if self.share_layers == 0 or layer is None:
            return pool
        return f"{pool} {layer // self.share_layers}"
