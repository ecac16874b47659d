"""SeedLM's decoder: a seed's pseudo-random basis times a few coefficients; `encode.py` has the whole story.

Settings: `block_size` C, `latent_dim` P, `bits`, `seed_bits` K, `exponent_bits`. Streams of a tensor of N blocks:
`seeds` [N], `exponents` [N] with an offset of 2^(exponent_bits - 1), `codes` [N P], `scale` [1] in bfloat16.

    step = scale * 2^e,   c_p = value(code_p) * step,   w_i = ((0 + u_i0 c_0) + u_i1 c_1) + ...

each operation rounded to float32; `u_ip` is number i P + p after the seed (`lfsr.wave`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from phase8.codecs.bounds import whole_numbers
from phase8.codecs.seedlm import lfsr
from phase8.codecs.streams import EncodedGroup, EncodedTensor, Layout, bfloat16_values, finite, matrix_size
from phase8.errors import ArtifactError

BOUNDS = {"block_size": (1, 4096), "latent_dim": (1, 64), "bits": (1, 8), "seed_bits": (4, 20), "exponent_bits": (2, 8)}
MAX_TABLE = 1 << 26
"""latent_dim^2 2^seed_bits at most."""
_ELEMENTS_AT_ONCE = 1 << 20


def code_values(codes, bits: int):
    """Values of codes, in the arithmetic of their array type."""
    half = 1 << (bits - 1)
    return 2 * codes - (2 * half - 1) if bits <= 2 else codes - half


class Settings(NamedTuple):
    """The checked settings of a group."""

    block_size: int
    latent_dim: int
    bits: int
    seed_bits: int
    exponent_bits: int


def settings_of(settings: Mapping[str, Any]) -> Settings:
    """Checks the settings of a group.

    Raises:
        ArtifactError: a setting is missing, unknown or out of range.
    """
    if set(settings) != set(BOUNDS):
        raise ArtifactError("the settings of a seedlm group are not the known ones", where=str(sorted(settings)))
    found = Settings(**whole_numbers(settings, BOUNDS, "seedlm group"))
    if found.latent_dim > found.block_size or found.latent_dim**2 << found.seed_bits > MAX_TABLE:
        raise ArtifactError(f"a seedlm group has impossible settings: {dict(settings)}", where="seedlm group")
    return found


def layout(settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """See `phase8.codecs.decoders`."""
    config = settings_of(settings)
    tensors, numbers = {}, config.block_size * config.latent_dim
    # The register's cycle costs about 16 operations a state; then one product and one sum for each code and weight.
    operations = (16 << config.seed_bits) + numbers
    for name, shape in shapes.items():
        count = -(-matrix_size(shape, name) // config.block_size)
        operations += 3 * count * min(numbers, math.prod(shape) * config.latent_dim)
        tensors[name] = {
            "seeds": (count, config.seed_bits),
            "exponents": (count, config.exponent_bits),
            "codes": (count * config.latent_dim, config.bits),
            "scale": (1, 16),
        }
    return Layout(tensors=tensors, operations=operations, table=(4 << config.seed_bits) + numbers)


def parts(name: str, tensor: EncodedTensor, config: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.float32]:
    """Takes apart a tensor that fits its layout.

    Returns:
        seeds int64 [N]; exponents int32 [N]; codes [N, P]; the scale.

    Raises:
        ArtifactError: a seed is 0; the scale is not finite.
    """
    seeds = tensor.streams["seeds"].values.astype(np.int64)
    if not seeds.all():
        raise ArtifactError("a seed is 0, which stands for no basis", where=name)
    scale = finite(bfloat16_values(tensor.streams["scale"].values), name)[0]
    exponents = tensor.streams["exponents"].values.astype(np.int32) - (1 << (config.exponent_bits - 1))
    return seeds, exponents, tensor.streams["codes"].values.reshape(-1, config.latent_dim), scale


def decode(group: EncodedGroup) -> Iterator[tuple[str, np.ndarray]]:
    """See `phase8.codecs.decoders`."""
    config = settings_of(group.settings)
    block_size, latent_dim = config.block_size, config.latent_dim
    numbers, start = lfsr.wave(config.seed_bits, block_size * latent_dim)
    at_once = max(1, _ELEMENTS_AT_ONCE // block_size)
    for name, tensor in group.tensors.items():
        seeds, exponents, codes, scale = parts(name, tensor, config)
        size = math.prod(tensor.shape)
        within = np.arange(min(block_size, size)) * latent_dim  # no more than needed where there is but one block
        flat = np.empty((len(seeds), len(within)), dtype=np.float32)
        step = np.ldexp(scale, exponents)
        for begin in range(0, len(seeds), at_once):
            rows = slice(begin, begin + at_once)
            place = start[seeds[rows]][:, None] + within
            total = np.zeros(place.shape, dtype=np.float32)
            for p in range(latent_dim):
                coefficient = code_values(codes[rows, p].astype(np.float32), config.bits) * step[rows]
                total += numbers[place + p] * coefficient[:, None]
            flat[rows] = total
        yield name, flat.reshape(-1)[:size].reshape(tensor.shape)
