"""The context coder: what comes back, how short it is, and that damaged bytes are refused or harmless."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from phase8.errors import ArtifactError, CodecError
from phase8.lossless import contexts

ANY = st.one_of(st.just(0), st.integers(-3, 3), st.integers(-contexts.LARGEST, contexts.LARGEST))


@st.composite
def matrix(draw) -> np.ndarray:
    """Small, and often with rows and columns that are empty; widths and heights come again."""
    shape = draw(st.sampled_from([(1, 1), (9, 70), (70, 9), (9, 9), (130, 3)])), draw(st.integers(1, 70))
    values = draw(arrays.arrays(np.int64, draw(st.sampled_from([shape[0], (shape[1], 5)])), elements=ANY))
    for axis in (0, 1):
        if draw(st.booleans()):
            kept = draw(arrays.arrays(bool, values.shape[axis]))
            values = values * (kept[:, None] if axis == 0 else kept)
    return values


MATRICES = st.lists(matrix(), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(matrices=MATRICES)
def test_every_matrix_comes_back(matrices):
    blob = contexts.encode(matrices)
    found = contexts.decode(blob, [m.shape for m in matrices])
    assert all(np.array_equal(a, b) for a, b in zip(found, matrices, strict=True))


@settings(max_examples=20, deadline=None)
@given(matrices=MATRICES)
def test_the_loop_without_the_library_reads_the_same(matrices):
    blob, library = contexts.encode(matrices), contexts.constriction
    contexts.constriction = None
    try:
        found = contexts.decode(blob, [m.shape for m in matrices])
    finally:
        contexts.constriction = library
    assert all(np.array_equal(a, b) for a, b in zip(found, matrices, strict=True))


def entropy_bits(q: np.ndarray) -> float:
    counts = np.unique(q, return_counts=True)[1]
    return float(-(counts * np.log2(counts / q.size)).sum())


def sparse(rng: np.random.Generator, shape: tuple[int, int], density) -> np.ndarray:
    return (rng.random(shape) < density) * rng.choice([-1, 1], shape)


def test_columns_of_their_own_density_take_fewer_bits_than_the_frequencies_alone():
    rng = np.random.default_rng(0)
    q = sparse(rng, (512, 256), np.where(np.arange(256) % 2, 0.02, 0.18))
    per_column = sum(entropy_bits(q[:, i]) for i in range(256))
    size = 8 * len(contexts.encode([q]))
    assert size < 0.95 * entropy_bits(q)
    assert size < 1.06 * per_column


def test_rows_of_their_own_density_do_too():
    rng = np.random.default_rng(1)
    q = sparse(rng, (512, 256), np.where(np.arange(512) % 4 == 0, 0.4, 0.02)[:, None])
    assert 8 * len(contexts.encode([q])) < 0.92 * entropy_bits(q)


def test_without_structure_it_costs_little_more_than_the_entropy():
    rng = np.random.default_rng(2)
    for density in (0.02, 0.15, 0.5):
        q = sparse(rng, (256, 256), density) * rng.geometric(0.7, (256, 256))
        assert 8 * len(contexts.encode([q])) < 1.02 * entropy_bits(q) + 400


@pytest.mark.parametrize("deviation", [8.0, 40.0])
def test_large_integers_cost_little_more_than_the_entropy(deviation):
    q = np.rint(np.random.default_rng(0).normal(size=(200, 300)) * deviation).astype(np.int64)
    assert 8 * len(contexts.encode([q])) < 1.06 * entropy_bits(q)


def test_the_length_is_what_was_estimated():
    rng = np.random.default_rng(3)
    matrices = [sparse(rng, (100, 80), 0.2), sparse(rng, (40, 200), 0.05)]
    assert contexts.code_length_bits(matrices) == pytest.approx(8 * len(contexts.encode(matrices)), abs=64)


def test_what_a_shape_leaves_out_of_heads_takes_next_to_nothing():
    rng = np.random.default_rng(5)
    whole, taken = [], []
    for _ in range(4):  # queries, keys and values of 16 of 64 channels, and the output
        pairs = np.isin(np.arange(256) % 32, rng.choice(32, 8, replace=False))
        for rows in (pairs, pairs, np.arange(256) % 64 < 16):
            q = sparse(rng, (256, 48), 0.4) * rows[:, None]
            whole.append(q)
            taken.append(q[rows])
    assert len(contexts.encode(whole)) < len(contexts.encode(taken)) + 12 * 256 / 8  # a bit a row


def test_a_matrix_of_zeros_takes_next_to_nothing():
    assert len(contexts.encode([np.zeros((256, 256), dtype=np.int64)])) < 40


def test_values_beyond_the_largest_are_refused():
    with pytest.raises(CodecError, match="beyond"):
        contexts.encode([np.array([[contexts.LARGEST + 1]])])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_bytes_end_in_an_error_or_in_other_integers_of_the_same_shape(data):
    rng = np.random.default_rng(4)
    blob = bytearray(contexts.encode([sparse(rng, (30, 50), 0.2)]))
    place = data.draw(st.integers(0, len(blob) - 1))
    blob[place] ^= data.draw(st.integers(1, 255))
    try:
        (found,) = contexts.decode(bytes(blob), [(30, 50)])
    except ArtifactError:
        return
    assert found.shape == (30, 50) and np.abs(found).max() <= contexts.LARGEST


@pytest.mark.parametrize("blob", [b"", b"\x00", b"\x10\x01\x02", b"\x10" + b"\x01" * 4 * 500])
def test_bytes_that_no_encoder_wrote_are_refused(blob):
    with pytest.raises(ArtifactError):
        contexts.decode(blob, [(8, 8)])
