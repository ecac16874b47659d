"""Bit packing against arithmetic on one big integer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phase8.errors import ArtifactError, CodecError
from phase8.lossless.bitpack import pack, packed_bytes, unpack


@st.composite
def streams(draw) -> tuple[np.ndarray, int]:
    bits = draw(st.integers(1, 32))
    values = draw(st.lists(st.integers(0, 2**bits - 1), max_size=60))
    return np.array(values, dtype=np.uint32), bits


@given(streams())
@settings(max_examples=80, deadline=None)
def test_layout_and_round_trip(stream: tuple[np.ndarray, int]) -> None:
    values, bits = stream
    number = sum(int(value) << (place * bits) for place, value in enumerate(values))
    data = pack(values, bits)
    assert data == number.to_bytes(packed_bytes(values.size, bits), "little")
    back = unpack(data, bits, values.size)
    assert np.array_equal(back, values)
    assert back.dtype == (np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)


@pytest.mark.parametrize("bits", [1, 3, 7, 12, 31])
def test_long_streams_cross_chunks(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (1 << 17) + 5, dtype=np.uint32)
    data = pack(values, bits)
    assert len(data) == packed_bytes(values.size, bits)
    assert np.array_equal(unpack(data, bits, values.size), values)


def test_worked_example() -> None:
    assert pack(np.array([1, 2, 3], dtype=np.uint8), 2) == bytes([57])


@pytest.mark.parametrize(("values", "bits"), [([4], 2), ([1], 0), ([1], 33), ([-1], 4)])
def test_pack_rejects(values: list[int], bits: int) -> None:
    with pytest.raises(CodecError):
        pack(np.array(values), bits)


@pytest.mark.parametrize(
    ("data", "bits", "count"), [(b"", 2, 1), (b"\0\0", 2, 1), (b"\xff", 2, 3), (b"\0", 0, 1), (b"\0" * 5, 33, 1)]
)
def test_unpack_rejects(data: bytes, bits: int, count: int) -> None:
    with pytest.raises(ArtifactError):
        unpack(data, bits, count)
