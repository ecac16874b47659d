"""The settings among which an allocation chooses, and what they take in plain packing.

Each stage has about ten, from its cheapest useful rate upwards: those that came out on the lower hull of error against
entropy-coded bits on Gaussian weights, or within 0.2 dB of it (SeedLM: 65,536 weights, 83 settings). All other
settings of the stage, such as the seeds' width or the damping, stay as the user has them; the user's own dimensions
are one more candidate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from phase8.config import CodebookSource, CompressionConfig, HyperConfig, SeedLMConfig, Sharing, VPTQConfig

StageConfig = SeedLMConfig | VPTQConfig | HyperConfig

VARIED = {
    "seedlm": ("block_size", "latent_dim", "bits"),
    "vptq": ("vector_dim", "codebook_size", "num_codebooks"),
    "hyper": ("dims", "grid"),
}
"""The settings that an allocation chooses; the numbers of `_GRID` in their order."""

_GRID: dict[str, tuple[tuple[int, ...], ...]] = {
    # 1.4 to 5.3 bits per weight with 16-bit seeds
    "seedlm": (
        (16, 3, 1), (14, 4, 1), (12, 4, 1), (10, 4, 1), (10, 4, 2), (8, 4, 1), (7, 4, 1), (8, 4, 3), (8, 4, 4),
        (6, 3, 4),
    ),
    # 0.5 to 4 bits per weight; at some rates a small codebook beside a large one, for small models
    "vptq": (
        (8, 16, 1), (16, 256, 1), (8, 256, 1), (4, 64, 1), (6, 512, 1), (4, 256, 1), (4, 512, 1), (4, 1024, 1),
        (2, 64, 1), (2, 128, 1), (2, 256, 1),
    ),
    # 0.06 to 4 bits per weight
    "hyper": (
        (128, 255), (112, 16383), (48, 4095), (24, 4095), (16, 4095), (12, 4095), (8, 4095), (4, 255), (3, 511),
        (2, 255),
    ),
}  # fmt: skip


def candidates(stage: str, config: StageConfig) -> list[StageConfig]:
    """The candidate settings of a stage, the cheapest first; the stage's own among them."""
    found = []
    for row in _GRID[stage]:
        if stage != "vptq" or _divisible(row[0], config):
            found.append(replace(config, **dict(zip(VARIED[stage], row, strict=True))))
    if config not in found:
        found.append(config)
    return sorted(found, key=lambda candidate: bits_per_weight(stage, candidate))


def _divisible(vector_dim: int, config: VPTQConfig) -> bool:
    """Whether vectors of this length can be cut into the parts and the outliers' vectors that the settings ask for."""
    outliers = config.outlier_vector_dim if config.outlier_columns else 1
    return vector_dim % config.product == 0 and vector_dim % outliers == 0


def bits_per_weight(stage: str, config: Any) -> float:
    """Packed bits per weight, without codebooks, scales and padding."""
    if stage == "seedlm":
        return (config.seed_bits + config.exponent_bits + config.bits * config.latent_dim) / config.block_size
    if stage == "vptq":
        indices = config.num_codebooks * config.product
        return indices * max(1, (config.codebook_size - 1).bit_length()) / config.vector_dim
    return ((config.classes + 1) * (config.grid + 1) - 1).bit_length() / config.dims


def packed_bits(stage: str, config: Any, shapes: Mapping[str, tuple[int, int]]) -> int:
    """Packed bits of one group of matrices, codebooks and scales included (`docs/format.md`, section 6)."""
    sizes = [rows * columns for rows, columns in shapes.values()]
    if stage == "seedlm":
        per_block = config.seed_bits + config.exponent_bits + config.bits * config.latent_dim
        return sum(-(-size // config.block_size) * per_block + 16 for size in sizes)
    if stage == "vptq":
        share, v = round(1000 * config.outlier_columns), config.vector_dim
        groups = {name: -(-rows // v) for name, (rows, _) in shapes.items()}
        special = {name: columns * share // 1000 for name, (_, columns) in shapes.items()}
        vectors = sum(groups[name] * (shapes[name][1] - special[name]) for name in shapes)
        bits = config.num_codebooks * _coded_bits(vectors, config.codebook_size, v, config.product, config)
        if any(special.values()):
            few = config.outlier_vector_dim
            own = sum(groups[name] * (v // few) * special[name] for name in shapes)
            bits += _coded_bits(own, config.outlier_codebook_size, few, 1, config)
            bits += sum(special[name] * max(1, (columns - 1).bit_length()) for name, (_, columns) in shapes.items())
        return bits + 16 * len(shapes)
    bits = ((config.classes + 1) * (config.grid + 1) - 1).bit_length()
    shared = 16 * (config.dims + 1 + config.classes)
    return sum(-(-size // config.dims) * bits + 16 for size in sizes) + shared


def _coded_bits(vectors: int, size: int, length: int, product: int, config: VPTQConfig) -> int:
    """Bits of a VPTQ codebook, of all parts together, and of the indices into it."""
    entries = min(size, vectors)
    book = entries * length * config.codebook_bits + (16 if config.codebook_bits == 8 else 0)
    if config.codebook_source is CodebookSource.seeded:
        book = 16
    return vectors * product * max(1, (entries - 1).bit_length()) + book


def pool_of(name: str, kind: str, stage: str, config: CompressionConfig | VPTQConfig | Any) -> str:
    """Matrices with the same answer share parameters where they have the same settings.

    `vptq.share` and `vptq.share_layers` decide. A matrix's layer is the first number in its name; those that belong to
    no layer, such as the embedding, share among themselves as matrices of one layer do. Example: with `share=kind` and
    `share_layers=2`, `model.layers.5.mlp.up_proj.weight` shares with layer 4's `up_proj` alone.

    Args:
        name: the matrix's name.
        kind: its sort, as `phase8.artifact.write.kind_of` says.
        config: the stage's settings.
    """
    if stage != "vptq":
        return "model"
    if config.share is Sharing.tensor:
        return name
    pool = kind if config.share is Sharing.kind else "model"
    layer = next((int(part) for part in name.split(".") if part.isdecimal()), None)
    if config.share_layers == 0 or layer is None:
        return pool
    return f"{pool} {layer // config.share_layers}"
