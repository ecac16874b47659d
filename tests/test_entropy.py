"""Entropy coding: lossless, close to the entropy, deterministic, safe on damaged input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phase8.errors import ArtifactError, CodecError
from phase8.lossless import entropy
from phase8.lossless.bitpack import narrowest, packed_bytes


def entropy_bytes(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(counts @ np.log2(counts.sum() / counts)) / 8


@st.composite
def streams(draw) -> tuple[np.ndarray, int]:
    bits = draw(st.integers(1, 32))
    size = draw(st.integers(0, 400))
    skew = draw(st.floats(0.1, 8))
    uniform = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random(size)
    return (uniform**skew * (2**bits - 1)).astype(narrowest(bits)), bits


@given(streams())
@settings(max_examples=80, deadline=None)
def test_round_trip(stream: tuple[np.ndarray, int]) -> None:
    values, bits = stream
    coding, blob = entropy.encode(values, bits)
    assert len(blob) <= packed_bytes(values.size, bits)
    assert entropy.encode(values.copy(), bits) == (coding, blob)
    back = entropy.decode(coding, blob, bits, values.size)
    assert np.array_equal(back, values)
    assert back.dtype == narrowest(bits)


def gaussian(bits: int, sigma: float, count: int) -> np.ndarray:
    drawn = np.random.default_rng(bits).normal(2 ** (bits - 1), sigma, count).round()
    return np.clip(drawn, 0, 2**bits - 1).astype(narrowest(bits))


@pytest.mark.parametrize(
    ("name", "values", "bits"),
    [
        ("sparse ternary", np.random.default_rng(1).choice(3, 100_000, p=[0.02, 0.95, 0.03]).astype(np.uint8), 2),
        ("4 bit", gaussian(4, 2, 100_000), 4),
        ("8 bit", gaussian(8, 12, 100_000), 8),
        ("12 bit", gaussian(12, 300, 300_000), 12),
        ("exponents", np.minimum(np.random.default_rng(2).geometric(0.6, 100_000), 15).astype(np.uint8), 4),
    ],
)
def test_within_one_percent_of_the_entropy(name: str, values: np.ndarray, bits: int) -> None:
    assert len(entropy.encode(values, bits)[1]) <= 1.01 * entropy_bytes(values) + 8, name


@pytest.mark.parametrize("bits", [8, 12])
def test_runs_and_wider_integers_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    values = gaussian(bits, 2 ** (bits - 4), 5000)
    blobs = [entropy.encode(values.astype(dtype), bits) for dtype in (narrowest(bits), np.uint32)]
    monkeypatch.setattr(entropy, "_CODED_AT_ONCE", 300)
    assert blobs[0] == blobs[1] == entropy.encode(values, bits)


def test_float16_streams_gain_from_planes() -> None:
    values = np.random.default_rng(3).normal(0, 0.02, 50_000).astype(np.float16).view(np.uint16)
    coding, blob = entropy.encode(values, 16)
    assert coding == "planes"
    assert len(blob) < 0.88 * 2 * values.size


def test_uniform_stays_packed_and_constant_vanishes() -> None:
    uniform = np.random.default_rng(4).integers(0, 2**16, 20_000, dtype=np.uint16)
    assert entropy.encode(uniform, 16)[0] == "packed"
    for constant in (0, 7, 15):
        coding, blob = entropy.encode(np.full(10_000, constant, dtype=np.uint8), 4)
        assert (coding, len(blob) < 20) == ("ans", True)
        assert (entropy.decode(coding, blob, 4, 10_000) == constant).all()


def test_rejects_values_that_do_not_fit() -> None:
    with pytest.raises(CodecError):
        entropy.encode(np.array([16], dtype=np.uint8), 4)


@pytest.mark.parametrize(("bits", "values"), [(4, gaussian(4, 1, 500)), (16, gaussian(16, 90, 2000))])
def test_damaged_blobs_are_rejected_or_decode_in_range(bits: int, values: np.ndarray) -> None:
    coding, blob = entropy.encode(values, bits)
    assert coding in {"ans", "planes"}
    for cut in (0, 1, 4, 6, len(blob) // 2, len(blob) - 4, len(blob) - 1):
        with pytest.raises(ArtifactError):
            entropy.decode(coding, blob[:cut], bits, values.size)
    with pytest.raises(ArtifactError):  # a count off by one or two may go unseen: the caller's count is the true one
        entropy.decode(coding, blob, bits, values.size // 2)
    random = np.random.default_rng(5)
    for _ in range(300):
        damaged = bytearray(blob)
        damaged[random.integers(len(blob))] ^= 1 << random.integers(8)
        try:
            back = entropy.decode(coding, bytes(damaged), bits, values.size)
        except ArtifactError:
            continue
        assert back.shape == values.shape and int(back.max()) < 2**bits


@given(st.binary(max_size=200), st.sampled_from([*entropy.CODINGS, "zip"]), st.integers(0, 40), st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_random_bytes_raise_artifact_errors_only(blob: bytes, coding: str, bits: int, count: int) -> None:
    try:
        values = entropy.decode(coding, blob, bits, count)
    except ArtifactError:
        return
    assert values.shape == (count,) and (count == 0 or int(values.max()) < 2**bits)
