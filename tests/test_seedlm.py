"""SeedLM against a slow search written from the paper, and the promises of every codec."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from phase8.codecs.base import EncodedGroup, EncodedTensor, Importance, Stream
from phase8.codecs.seedlm import bank, lfsr, seed_search
from phase8.codecs.seedlm import encode as seedlm
from phase8.codecs.seedlm.encode import SeedLMCodec
from phase8.config import SeedLMConfig, SeedSearch
from phase8.errors import ArtifactError, CodecError, ConfigError

SMALL = SeedLMConfig(seed_bits=8, candidates=255, search=SeedSearch.exhaustive)


def encode(weights: dict[str, torch.Tensor], config: SeedLMConfig) -> EncodedGroup:
    return SeedLMCodec().encode(weights, config, importance={}, seed=0)


@pytest.fixture
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """So many blocks are searched by lists, although lists pay from eight times as many on."""
    monkeypatch.setattr(seed_search, "_LEAST_BLOCKS", 1000)
    return 1000


def relative_error(original: np.ndarray, rebuilt: np.ndarray) -> float:
    """Root mean square of the error over that of the weights."""
    return math.sqrt(((original.astype(np.float64) - rebuilt) ** 2).sum() / (original.astype(np.float64) ** 2).sum())


def grid(bits: int) -> np.ndarray:
    if bits == 1:
        return np.array([-1, 1])
    return np.array([-3, -1, 1, 3]) if bits == 2 else np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))


def scalar_basis(seed: int, config: SeedLMConfig) -> np.ndarray:
    width, values, state = config.seed_bits, [], seed
    for _ in range(config.block_size * config.latent_dim):
        bit = 0
        for tap in lfsr.TAPS[width]:
            bit ^= (state >> tap) & 1
        state = (state >> 1) | (bit << (width - 1))
        values.append((state - 2 ** (width - 1)) / (2 ** (width - 1) - 1))
    return np.array(values).reshape(config.block_size, config.latent_dim)


def least_error(block: np.ndarray, scale: float, config: SeedLMConfig) -> float:
    """The paper's search: every seed, pseudo-inverse in float64, rounded coefficients, exponent e or e - 1.

    At 1 bit every pattern of signs instead of that of the pseudo-inverse's coefficients, and every exponent.
    """
    levels, least = grid(config.bits), math.inf
    limit = 2**config.bits if config.bits <= 2 else 2 ** (config.bits - 1) - 0.5
    floor, top = -(2 ** (config.exponent_bits - 1)), 2 ** (config.exponent_bits - 1) - 1
    for seed in range(1, 2**config.seed_bits):
        basis = scalar_basis(seed, config)
        if config.bits == 1:
            words = basis @ np.array(list(itertools.product((-1, 1), repeat=config.latent_dim))).T
            steps = scale * 2.0 ** np.arange(floor, top + 1)
            least = min(least, ((block[:, None, None] - words[:, :, None] * steps) ** 2).sum(0).min())
            continue
        t = np.linalg.pinv(basis) @ block / scale
        first = math.ceil(math.log2(np.abs(t).max() / limit))
        for exponent in (first, first - 1):
            step = 2.0 ** min(max(exponent, floor), top)
            rounded = levels[np.abs(t[:, None] / step - levels).argmin(1)]
            least = min(least, float(((block - scale * basis @ rounded * step) ** 2).sum()))
    return least


@pytest.mark.parametrize(("block_size", "latent_dim", "bits"), [(8, 3, 4), (8, 3, 1), (6, 2, 2), (5, 3, 3), (20, 4, 4)])
def test_exhaustive_search_finds_the_paper_s_optimum(block_size: int, latent_dim: int, bits: int) -> None:
    config = dataclasses.replace(SMALL, block_size=block_size, latent_dim=latent_dim, bits=bits)
    matrix = torch.randn(10, block_size, generator=torch.Generator().manual_seed(bits)) * 0.02
    group = encode({"w": matrix}, config)
    rebuilt = SeedLMCodec().decode(group)["w"]
    scale = float((group.tensors["w"].streams["scale"].values.astype(np.uint32) << 16).view(np.float32)[0])
    for row, original in enumerate(matrix.double().numpy()):
        achieved = float(((original - rebuilt[row]) ** 2).sum())
        assert achieved == pytest.approx(least_error(original, scale, config), rel=1e-4)


def test_decode_is_the_formula() -> None:
    config = dataclasses.replace(SMALL, block_size=5, latent_dim=2, bits=3)
    group = encode({"w": torch.randn(3, 5, generator=torch.Generator().manual_seed(1))}, config)
    streams = {key: stream.values for key, stream in group.tensors["w"].streams.items()}
    scale = float((streams["scale"].astype(np.uint32) << 16).view(np.float32)[0])
    for row in range(3):
        basis = scalar_basis(int(streams["seeds"][row]), config)
        codes = streams["codes"][2 * row : 2 * row + 2].astype(float) - 4
        expected = scale * 2.0 ** (int(streams["exponents"][row]) - 8) * basis @ codes
        assert SeedLMCodec().decode(group)["w"][row] == pytest.approx(expected, rel=1e-5, abs=1e-7)


# Largest relative root-mean-square error on Gaussian weights by (C, P, bits) at K = 16. No coder of R bits a weight can
# get below 2^-R, so an error under that would mean that the rate is miscounted.
TOLERANCES = {(8, 3, 4): 0.127, (12, 4, 4): 0.235, (8, 3, 3): 0.16, (8, 3, 2): 0.25, (8, 3, 1): 0.4}


@pytest.mark.parametrize(("setting", "largest"), TOLERANCES.items())
def test_error_on_gaussian_weights(setting: tuple[int, int, int], largest: float) -> None:
    block_size, latent_dim, bits = setting
    config = SeedLMConfig(block_size=block_size, latent_dim=latent_dim, bits=bits, search=SeedSearch.exhaustive)
    matrix = torch.randn(192, block_size, generator=torch.Generator().manual_seed(2)) * 0.02
    group = encode({"w": matrix}, config)
    error = relative_error(matrix.numpy(), SeedLMCodec().decode(group)["w"])
    assert 2 ** (-group.packed_bits() / matrix.numel()) < error < largest


@pytest.mark.parametrize("setting", [pytest.param((12, 4, 4), marks=pytest.mark.slow), (8, 3, 1), (8, 3, 4)])
def test_fast_search_loses_at_most_one_percent(setting: tuple[int, int, int], few_blocks: int) -> None:
    block_size, latent_dim, bits = setting
    blocks = torch.randn(few_blocks, block_size, generator=torch.Generator().manual_seed(3)) * bank.limit(bits) / 2.5
    config = SeedLMConfig(block_size=block_size, latent_dim=latent_dim, bits=bits)
    exhaustive = dataclasses.replace(config, search=SeedSearch.exhaustive)
    assert search_error(blocks, config) <= 1.01 * search_error(blocks, exhaustive)


def search_error(blocks: torch.Tensor, config: SeedLMConfig) -> float:
    seeds, exponents, codes = seed_search.search(blocks, config, lambda _: None)
    bases = torch.from_numpy(lfsr.bases(seeds.numpy(), config.block_size, config.latent_dim, config.seed_bits))
    levels = torch.from_numpy(grid(config.bits)).float()[codes.long()] * 2.0 ** exponents[:, None]
    return float((blocks - (bases @ levels[:, :, None])[:, :, 0]).square().sum())


@pytest.mark.parametrize("search", list(SeedSearch))
@pytest.mark.parametrize("bits", [1, 4])
def test_importance_lowers_the_weighted_error(bits: int, search: SeedSearch) -> None:
    generator = torch.Generator().manual_seed(14)
    matrix = torch.randn(20, 24, generator=generator)
    diagonal, row = torch.rand(24, generator=generator) ** 4 + 0.02, torch.rand(20, generator=generator) + 0.1
    importance = {"w": Importance(hessian_II=torch.diag(diagonal), row_O=row / row.mean())}
    config, errors = dataclasses.replace(SMALL, bits=bits, seed_bits=12, candidates=0, search=search), []
    for weighted in (False, True):
        config = dataclasses.replace(config, weighted=weighted)
        group = SeedLMCodec().encode({"w": matrix}, config, importance=importance, seed=0)
        rebuilt = torch.from_numpy(SeedLMCodec().decode(group)["w"])
        errors.append(float(((matrix - rebuilt).square() * diagonal * row[:, None]).sum()))
    assert errors[1] < 0.9 * errors[0]


def test_weighted_search_finds_the_optimum() -> None:
    config = dataclasses.replace(SMALL, weighted=True)
    generator = torch.Generator().manual_seed(15)
    matrix, diagonal = torch.randn(6, 8, generator=generator), torch.rand(8, generator=generator) + 0.2
    importance = {"w": Importance(hessian_II=torch.diag(diagonal))}
    group = SeedLMCodec().encode({"w": matrix}, config, importance=importance, seed=0)
    rebuilt = SeedLMCodec().decode(group)["w"]
    scale = float((group.tensors["w"].streams["scale"].values.astype(np.uint32) << 16).view(np.float32)[0])
    roots = diagonal.double().sqrt().numpy()
    for row, original in enumerate(matrix.double().numpy()):
        least = math.inf
        for seed in range(1, 2**config.seed_bits):
            basis = scalar_basis(seed, config)
            t = np.linalg.pinv(basis * roots[:, None]) @ (original * roots) / scale
            first = math.ceil(math.log2(np.abs(t).max() / 7.5))
            for step in (2.0**first, 2.0 ** (first - 1)):
                rounded = np.clip(np.round(t / step), -8, 7) * step
                least = min(least, float((((original - scale * basis @ rounded) * roots) ** 2).sum()))
        achieved = float((((original - rebuilt[row]) * roots) ** 2).sum())
        assert achieved == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("bits", [1, 4])
def test_threads_do_not_change_the_result(bits: int, few_blocks: int) -> None:
    blocks = torch.randn(few_blocks, 8, generator=torch.Generator().manual_seed(13)) * bank.limit(bits) / 2.5
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(seed_search.search(blocks, SeedLMConfig(bits=bits), lambda _: None))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_runs_that_cut_matrices_are_as_good(monkeypatch: pytest.MonkeyPatch, few_blocks: int) -> None:
    generator = torch.Generator().manual_seed(16)
    weights = {"a": torch.randn(100, 121, generator=generator), "b": torch.randn(7, 11, generator=generator)}
    weights["c"] = torch.randn(60, 100, generator=generator) * 0.1
    errors, seeds, calls = [], [], []

    def counted(blocks: torch.Tensor, *rest: object) -> tuple[torch.Tensor, ...]:
        calls[-1].append(len(blocks))
        return seed_search.search(blocks, *rest)

    monkeypatch.setattr(seedlm, "search", counted)
    for most in (1 << 22, 10_000):
        monkeypatch.setattr(seedlm, "AT_ONCE", most)
        calls.append([])
        progress: list[int] = []
        group = SeedLMCodec().encode(weights, SeedLMConfig(), importance={}, seed=0, on_progress=progress.append)
        assert sum(progress) == sum(matrix.numel() for matrix in weights.values())
        decoded = SeedLMCodec().decode(group)
        errors.append([relative_error(matrix.numpy(), decoded[name]) for name, matrix in weights.items()])
        seeds.append(np.concatenate([tensor.streams["seeds"].values for tensor in group.tensors.values()]))
    assert [len(counts) for counts in calls] == [1, 2] and max(calls[1]) - min(calls[1]) <= 1
    assert min(calls[1]) >= few_blocks, "too few blocks for the lists to be used"
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
    assert (seeds[0] == seeds[1]).mean() > 0.999  # all but what rounding decides


def test_scale_of_the_weights_does_not_matter() -> None:
    matrix = torch.randn(16, 16, generator=torch.Generator().manual_seed(4))
    errors = []
    for factor in (2.0**-40, 1.0, 2.0**40):
        rebuilt = SeedLMCodec().decode(encode({"w": matrix * factor}, SMALL))["w"]
        errors.append(relative_error(matrix.numpy() * factor, rebuilt))
    assert errors[0] == pytest.approx(errors[1], rel=1e-4) and errors[2] == pytest.approx(errors[1], rel=1e-4)


def test_one_outlier_stays_in_range() -> None:
    matrix = torch.randn(64, 64, generator=torch.Generator().manual_seed(5)) * 1e-4
    matrix[3, 5] = 1.0
    rebuilt = SeedLMCodec().decode(encode({"w": matrix}, SMALL))["w"]
    assert rebuilt[3, 5] == pytest.approx(1.0, abs=0.5)


def test_bases_that_all_fit_equally_well() -> None:
    config = SeedLMConfig(block_size=2, latent_dim=2, seed_bits=12, candidates=8)
    matrix = torch.randn(20, 20, generator=torch.Generator().manual_seed(11))
    matrix[:10] = 0
    rebuilt = SeedLMCodec().decode(encode({"w": matrix}, config))["w"]
    assert relative_error(matrix.numpy(), rebuilt) < 0.15
    assert not rebuilt[:10].any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 8), (1, 17)])
@pytest.mark.parametrize("bits", [1, 4])
def test_odd_shapes_and_zeros(shape: tuple[int, int], bits: int) -> None:
    config = dataclasses.replace(SMALL, bits=bits)
    weights = {"random": torch.randn(shape, generator=torch.Generator().manual_seed(6)), "zero": torch.zeros(shape)}
    progress: list[int] = []
    group = SeedLMCodec().encode(weights, config, importance={}, seed=0, on_progress=progress.append)
    decoded = SeedLMCodec().decode(group)
    assert sum(progress) == 2 * shape[0] * shape[1]
    for name in weights:
        assert decoded[name].shape == shape and decoded[name].dtype == np.float32
        assert decoded[name].flags.c_contiguous
    assert not decoded["zero"].any()
    assert group.tensors["random"].streams["seeds"].values.size == -(-shape[0] * shape[1] // 8)


def test_published_rate() -> None:
    group = encode({"w": torch.randn(4, 64)}, dataclasses.replace(SMALL, seed_bits=10))
    assert group.packed_bits() == 4 * 64 // 8 * (10 + 4 + 3 * 4) + 16


@pytest.mark.parametrize("search", list(SeedSearch))
def test_determinism(search: SeedSearch, few_blocks: int) -> None:
    matrix = torch.randn(24, 384, generator=torch.Generator().manual_seed(7))
    matrix = matrix if search is SeedSearch.fast else matrix[:2]
    first, second = (encode({"w": matrix.clone()}, SeedLMConfig(search=search)) for _ in range(2))
    for key, stream in first.tensors["w"].streams.items():
        assert np.array_equal(stream.values, second.tensors["w"].streams[key].values)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rejects_weights_that_are_not_finite(bad: float) -> None:
    matrix = torch.ones(4, 4)
    matrix[1, 2] = bad
    with pytest.raises(CodecError):
        encode({"w": matrix}, SMALL)


def test_rejects_what_is_no_matrix() -> None:
    for tensor in (torch.ones(4), torch.ones(0, 4)):
        with pytest.raises(CodecError):
            encode({"w": tensor}, SMALL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_size": 0},
        {"latent_dim": 9},
        {"bits": 0},
        {"bits": 9},
        {"seed_bits": 3},
        {"seed_bits": 21},
        {"exponent_bits": 1},
        {"candidates": -1},
        {"bits": 4.0},
        {"bits": True},
        {"block_size": 64, "latent_dim": 64},
    ],
)
def test_rejects_impossible_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SeedLMConfig(**wrong)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_trainable_agrees_with_decode(bits: int) -> None:
    weights = {"a": torch.randn(7, 9, generator=torch.Generator().manual_seed(8)) * 0.02, "zero": torch.zeros(2, 3)}
    group = encode(weights, dataclasses.replace(SMALL, bits=bits))
    module = SeedLMCodec().trainable(group)
    unchanged = module.export()
    for name, tensor in group.tensors.items():
        for key in ("seeds", "exponents", "scale"):
            assert np.array_equal(unchanged.tensors[name].streams[key].values, tensor.streams[key].values)
    assert np.array_equal(unchanged.tensors["a"].streams["codes"].values, group.tensors["a"].streams["codes"].values)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 1 + 0.2 * torch.randn(parameter.shape, generator=generator)
    decoded, computed = SeedLMCodec().decode(module.export()), module.weights()
    for name, values in decoded.items():
        close = {"rtol": 1e-5, "atol": 1e-5 * float(np.abs(values).max())}
        assert torch.allclose(computed[name], torch.from_numpy(values), **close)


def test_training_lowers_a_weighted_error() -> None:
    generator = torch.Generator().manual_seed(10)
    matrix = torch.randn(32, 32, generator=generator)
    inputs = torch.randn(256, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    module = SeedLMCodec().trainable(encode({"w": matrix}, SMALL))

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return ((weights - matrix) @ inputs.T).square().mean()

    before = float(loss(torch.from_numpy(SeedLMCodec().decode(module.export())["w"])))
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        loss(module.weights()["w"]).backward()
        optimiser.step()
    assert float(loss(torch.from_numpy(SeedLMCodec().decode(module.export())["w"]))) < 0.95 * before


def corrupted(group: EncodedGroup, **changes: object) -> EncodedGroup:
    tensor = group.tensors["w"]
    settings = {**group.settings, **changes.pop("settings", {})}
    shape = changes.pop("shape", tensor.shape)
    streams = {key: changes.get(key, stream) for key, stream in tensor.streams.items()}
    tensors = {"w": EncodedTensor(shape=shape, streams={k: s for k, s in streams.items() if s is not None})}
    return EncodedGroup(codec="seedlm", settings=settings, tensors=tensors)


def stream(values: list[int], bits: int) -> Stream:
    return Stream(values=np.array(values, dtype=np.uint16), bits=bits)


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": stream([0, 1], 8)},
        {"seeds": stream([256, 1], 8)},
        {"seeds": stream([1], 8)},
        {"seeds": stream([1, 1], 9)},
        {"seeds": None},
        {"seeds": Stream(values=np.array([1, 1]), bits=8)},
        {"codes": stream([16] * 6, 4)},
        {"exponents": stream([0, 16], 4)},
        {"scale": stream([0x7F80], 16)},
        {"scale": stream([0x7FC0], 16)},
        {"shape": (10**9, 10**9)},
        {"shape": (0, 8)},
        {"shape": (-2, -8)},
        {"shape": (2, 8, 1)},
        {"settings": {"block_size": 0}},
        {"settings": {"seed_bits": 40}},
        {"settings": {"bits": "4"}},
        {"settings": {"search": "fast"}},
    ],
)
def test_rejects_corrupt_groups(changes: dict[str, object]) -> None:
    group = encode({"w": torch.randn(2, 8)}, SMALL)
    with pytest.raises(ArtifactError):
        SeedLMCodec().decode(corrupted(group, **changes))
